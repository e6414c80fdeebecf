"""The flags of MindSpeed-LLM's tune scripts (upstream_scripts.json): accepted, and meant as upstream.

The scripts train all parameters or a LoRA adapter. What each script asks for is derived from the file by
upstream_scripts.py, independently of this project's parser.
"""

from __future__ import annotations

import re

import pytest
from upstream_scripts import ACCEPTED, CONTENT, CONTEXT_PARALLEL, REFUSED, REFUSED_ADAPTERS, SCRIPTS, words_of

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError

# Flags that only context parallelism uses, and the mask that upstream's scripts combine with it.
OF_CONTEXT_PARALLELISM = (CONTEXT_PARALLEL, "--context-parallel-algo", "--cp-window-size", "--ulysses-degree-in-cp")


def parsed(name: str) -> PretrainArguments:
    return parse_pretrain_arguments(words_of(SCRIPTS[name]), SCRIPTS[name].ranks)


def problems_of(words: list[str], ranks: int) -> list[str]:
    try:
        parse_pretrain_arguments(words, ranks)
    except ConfigError as error:
        return error.problems
    return []


def test_the_table_has_every_script() -> None:
    full = [name.split()[0] for name, script in SCRIPTS.items() if script.adapter is None]
    lora = [name.split()[0] for name, script in SCRIPTS.items() if script.adapter is not None]
    assert (full.count("2.3.0"), full.count("master")) == (37, 12)
    assert (lora.count("2.3.0"), lora.count("master")) == (21, 7)
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in CONTENT["branches"].values())
    assert set(REFUSED) < set(SCRIPTS) and len(ACCEPTED) == (32 + 9) + (19 + 7)


@pytest.mark.parametrize("name", ACCEPTED)
def test_layout_model_and_run_are_those_of_the_script(name: str) -> None:
    arguments, script = parsed(name), SCRIPTS[name]
    model, parallel, training = arguments.model, arguments.parallel, arguments.training
    stages = parallel.pipeline_model_parallel_size
    assert script.layout == {
        "tensor": parallel.tensor_model_parallel_size,
        "pipeline": stages,
        "data": arguments.data_parallel_size,
        "sequence parallel": parallel.sequence_parallel,
        "distributed optimizer": parallel.use_distributed_optimizer,
        "layers of stages": list(parallel.layers_of_stages or [model.num_layers // stages] * stages),
        "virtual stages": arguments.virtual_stages,
    }
    vocabulary = model.padded_vocab_size or model.vocab_size
    assert script.model == {
        "layers": model.num_layers,
        "hidden": model.hidden_size,
        "ffn": model.ffn_size,
        "heads": model.num_attention_heads,
        "groups": model.query_groups,
        "head size": model.head_size,
        "qkv bias": model.add_qkv_bias,
        "qk norm": model.qk_layernorm,
        "tied": not model.untie_embeddings_and_output_weights,
        "epsilon": model.norm_epsilon,
        "rotary base": model.rotary_base,
        "rope scaling": model.rope_scaling_factor if model.use_rope_scaling else None,
        "vocabulary": str(vocabulary) if vocabulary else None,
    }
    assert script.run == {
        "micro-batch": training.micro_batch_size,
        "batch": arguments.global_batch_size,
        "micro-batches": arguments.micro_batches,
        "slots": arguments.data.seq_length,
        "lr": training.lr,
        "min lr": training.min_lr,
        "decay": training.lr_decay_style,
        "warm-up": training.lr_warmup_fraction or 0,
        "weight decay": training.weight_decay,
        "betas": (training.adam_beta1, training.adam_beta2),
        "steps": training.train_iters,
        "variable lengths": arguments.data.variable_seq_lengths,
        "neat": arguments.data.neat_pack,
    }
    adapter = arguments.lora.settings
    assert script.adapter == (
        {"targets": adapter.targets, "rank": adapter.rank, "alpha": adapter.alpha} if adapter is not None else None
    )


@pytest.mark.parametrize("name", REFUSED_ADAPTERS)
def test_a_refused_script_is_refused_for_its_kind_of_adapter_alone(name: str) -> None:
    script = SCRIPTS[name]
    refused = [flag for flag in script.flags if flag.startswith(("--qlora", "--lu-lora-"))]
    problems = problems_of(words_of(script), script.ranks)
    assert REFUSED_ADAPTERS[name] in refused
    assert sorted(problem.partition(":")[0] for problem in problems) == sorted(refused)
    assert all("is not supported yet; leave the flag out" in problem for problem in problems)
    assert problems_of(words_of(script, *refused), script.ranks) == []


@pytest.mark.parametrize("name", [name for name, flag in REFUSED.items() if flag == CONTEXT_PARALLEL])
def test_a_refused_script_is_refused_for_its_context_parallelism_alone(name: str) -> None:
    script = SCRIPTS[name]
    refused = [flag for flag in script.flags if flag in OF_CONTEXT_PARALLELISM]
    if script.flags.get("--attention-mask-type") == "general":
        refused.append("--attention-mask-type")
    problems = problems_of(words_of(script), script.ranks)
    assert sorted(problem.split()[0].rstrip(":") for problem in problems) == sorted(refused)
    assert REFUSED[name] in refused and int(str(script.flags[REFUSED[name]])) > 1
    assert sum("context parallelism is not supported yet" in problem for problem in problems) >= len(refused) - 1
    assert problems_of(words_of(script, *refused), script.ranks) == []
