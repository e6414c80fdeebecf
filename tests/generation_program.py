"""Run one rank of the generation tests: greedy answers on many layouts, and training with and without them.

Started twice by test_generation.py, with RANK set and a folder that holds a model, an adapter's settings and the
prompts; and the suite, short or long, whose cases it runs. Each rank writes what it found to SUITE + RANK.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from layouts_program import OVERLAPS, PP, TP, VIRTUAL
from layouts_program import packs_of as all_packs
from safetensors.torch import save_file
from thread_counts import threads_after_job, write_thread_counts
from tiny import batch_of, manifest_of

from mindspeed_llm.devices import Device, apply_patches

SP = "--sequence-parallel"
SEQUENCE, NEW_TOKENS = 160, 24
LAYOUTS = {
    "tp2, sequence parallel": (2, f"{TP} 2 {SP}"),
    "interleaved": (2, f"{PP} 2 {VIRTUAL}"),
    "lora, tp2, sequence parallel": (2, f"{TP} 2 {SP} --lora-target-modules all-linear --lora-r 4"),
}
MORE_LAYOUTS = {
    "pp2": (2, f"{PP} 2"),
    "dp2": (2, ""),
    "tp1": (1, ""),
    "tp2": (2, f"{TP} 2"),
    "interleaved, one stream": (2, f"{PP} 2 {VIRTUAL} --micro-batch-size 16"),
    "dp2, overlaps": (2, OVERLAPS),
    "dense loss": (1, "--loss-chunk-size 0"),
}
TRAINED = {"tp2, sequence parallel": (2, f"{TP} 2 {SP}")}
MORE_TRAINED = {
    "lora": (2, f"{TP} 2 --lora-target-modules all-linear --lora-r 4 --lora-dropout 0.2"),
    "interleaved": (2, f"{PP} 2 {VIRTUAL}"),
    "dp2, overlaps": (2, OVERLAPS),
}
CASES = {"short": (LAYOUTS, TRAINED), "long": (MORE_LAYOUTS, MORE_TRAINED)}  # by suite
MODEL, ADAPTED = "model", "adapter.safetensors"


def arguments_of(folder: Path, ranks: int, flags: str) -> Any:
    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments

    words = (
        f"--load {folder / MODEL} --seq-length {SEQUENCE} --lr 1e-3 --min-lr 1e-3 --data-path none --split 100,0,0 "
        "--is-instruction-dataset --neat-pack --reset-position-ids --eval-iters 0 --train-iters 3 "
        "--no-save-model --micro-batch-size 1 --global-batch-size 32 --clip-grad 1 --make-vocab-size-divisible-by 1 "
        f"--tokenizer-type PretrainedFromHF --tokenizer-name-or-path {folder / MODEL} "
        f"--generate-prompts {folder / 'prompts.jsonl'} --generate-tokens {NEW_TOKENS} {flags}"
    )
    return parse_pretrain_arguments(words.split(), ranks)


def prompts_of(arguments: Any) -> Any:
    """The prompts on rank 0, rendered with the template of qwen; None elsewhere."""
    from mindspeed_llm.chat import export_chat_template, load_chat_template
    from mindspeed_llm.generation import load_prompts
    from mindspeed_llm.manifest import TemplateInfo
    from mindspeed_llm.tokenization import find_stop_ids, load_tokenizer_of_command

    if os.environ["RANK"] != "0":
        return None
    tokenizer, template = load_tokenizer_of_command(arguments.tokenizer), load_chat_template("qwen")
    assert tokenizer is not None
    ends = find_stop_ids(template, tokenizer, append_end=False)
    info = TemplateInfo("qwen", template.sha256, export_chat_template(template), ends)
    manifest = manifest_of(packed=True, neat=True, seq_length=SEQUENCE, samples=1, tokens=8, trained=4, packs=1)
    return load_prompts(arguments, [dataclasses.replace(manifest, template=info)], tokenizer)


@contextlib.contextmanager
def started(folder: Path, ranks: int, flags: str, name: str) -> Iterator[tuple[Any, Any] | None]:
    """Build the job of a layout on this rank; None on a rank that it does not have."""
    from lora_program import set_factors_b
    from tiny_model import derived_of

    from mindspeed_llm.checkpoints import TrainingState, load_weights
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks

    rank = int(os.environ["RANK"])
    if rank >= ranks:
        yield None
        return
    store = torch.distributed.FileStore(str(folder / f"{name}.store"), ranks)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    arguments = arguments_of(folder, ranks, flags)
    init_process_groups(arguments.parallel, arguments.virtual_stages)
    seed_ranks(1234)
    job = setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 3, None))
    part = "all" if arguments.lora.settings is None else "base"
    load_weights(folder / MODEL, TrainingState(job.chunks, None, part))
    set_factors_b(job.chunks)
    job.optimizer.reload_model_params()
    try:
        yield job, arguments
    finally:
        destroy_process_groups()


def answers_on(folder: Path, name: str, ranks: int, flags: str) -> dict[str, Any] | None:
    """What the callback gives on one layout, on rank 0."""
    from layouts_program import gather_full
    from lora_program import trained_parts

    from mindspeed_llm.generation.answers_at_evaluation import AnswersAtEvaluation

    with started(folder, ranks, flags, name) as found:
        if found is None:
            return None
        job, arguments = found
        callback = AnswersAtEvaluation(arguments, prompts_of(arguments))
        note = callback(job.chunks, torch.device("cpu"), 5)
        assert all(chunk.training for chunk in job.chunks)
        if arguments.lora.settings is not None:
            factors = gather_full(trained_parts(job.chunks, lambda weight: weight), ranks)
            if factors is not None:
                save_file({name: value.contiguous() for name, value in factors.items()}, folder / ADAPTED)
        if note is None:
            return None
        return {"values": dict(note.values), "lines": list(note.lines), "log": note.log_line}


def digest_of_training(folder: Path, name: str, ranks: int, flags: str, generates: bool) -> list[str]:
    """Hashes of losses, weights, optimizer state and random states after three steps with dropout."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    from mindspeed_llm.generation.answers_at_evaluation import AnswersAtEvaluation
    from mindspeed_llm.storage.hashing import sha256_of
    from mindspeed_llm.training.train_step import train_step

    with started(folder, ranks, f"{flags} --hidden-dropout 0.1", f"{name}, {generates}") as found:
        assert found is not None
        job, arguments = found
        callback = AnswersAtEvaluation(arguments, prompts_of(arguments))
        replicas, replica = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        losses = []
        for step in range(3):
            if generates:
                callback(job.chunks, torch.device("cpu"), step)
            batches = [batch_of([one]) for one in all_packs(step, 4)[replica::replicas]]
            losses.append(train_step(job, batches, torch.device("cpu")).totals.mean_loss)
        if generates:
            callback(job.chunks, torch.device("cpu"), 3)
        job.state.finish_gathering()
        weights = [parameter.detach() for chunk in job.chunks for parameter in chunk.parameters()]
        moments = [
            value
            for group in job.optimizer.param_groups
            for parameter in group["params"]
            for value in _state_of(job.optimizer, parameter)
        ]
        assert moments, "the state of the optimizer was found"
        states = [torch.get_rng_state(), *get_cuda_rng_tracker().get_states().values()]
        digests = [
            sha256_of(b"".join(value.numpy().tobytes() for value in kind)) for kind in (weights, moments, states)
        ]
        return [str(losses), *digests]


def _state_of(optimizer: Any, parameter: torch.Tensor) -> list[torch.Tensor]:
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        state = one.optimizer.state.get(parameter)
        if state:
            return [state[key] for key in ("exp_avg", "exp_avg_sq")]
    return []


def main(folder: Path, suite: str) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"answers": {}, "trained": {}}
    threads = []
    layouts, trained = CASES[suite]
    for name, (ranks, flags) in layouts.items():
        answers = answers_on(folder, name, ranks, flags)
        if int(os.environ["RANK"]) < ranks:
            threads.append(threads_after_job())
        if answers is not None:
            results["answers"][name] = answers
    for name, (ranks, flags) in trained.items():
        results["trained"][name] = [digest_of_training(folder, name, ranks, flags, given) for given in (False, True)]
        threads.append(threads_after_job())
    write_thread_counts(folder, threads)
    (folder / f"{suite}{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
