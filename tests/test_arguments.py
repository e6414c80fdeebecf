"""The arguments of pretrain_gpt.py: the scripts' command lines, every rule, every notice, derived values."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from argument_rule_cases import ALLOWED, BROKEN, SMALL, small, words
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_llm.arguments.data_arguments import parse_data_path, parse_split
from mindspeed_llm.arguments.dataclass_parser import declared_flags, field_docstrings
from mindspeed_llm.arguments.model_arguments import ModelArguments, Vocabulary
from mindspeed_llm.arguments.notices import collect_notices
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError

QWEN25_7B = """
    --use-mcore-models --tensor-model-parallel-size 4 --pipeline-model-parallel-size 1 --sequence-parallel
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --transformer-impl local
    --num-layers 28 --hidden-size 3584 --ffn-hidden-size 18944 --num-attention-heads 28 --group-query-attention
    --num-query-groups 4 --max-position-embeddings 32768 --seq-length 4096 --disable-bias-linear --add-qkv-bias
    --swiglu --use-fused-swiglu --normalization RMSNorm --norm-epsilon 1e-6 --use-fused-rmsnorm
    --position-embedding-type rope --use-fused-rotary-pos-emb --rotary-base 1000000 --rotary-percent 1.0
    --untie-embeddings-and-output-weights --micro-batch-size 1 --global-batch-size 8 --make-vocab-size-divisible-by 1
    --padded-vocab-size 152064 --tokenizer-type PretrainedFromHF --tokenizer-name-or-path ./model_from_hf/qwen25-7b-hf
    --attention-dropout 0.0 --hidden-dropout 0.0 --train-iters 2000 --lr 7.75e-7 --lr-decay-style cosine
    --min-lr 7.75e-8 --lr-warmup-fraction 0.01 --init-method-std 0.01 --weight-decay 1e-1 --clip-grad 1.0
    --adam-beta1 0.9 --adam-beta2 0.95 --initial-loss-scale 4096 --no-gradient-accumulation-fusion
    --no-masked-softmax-fusion --attention-softmax-in-fp32 --use-flash-attn --seed 42 --bf16
    --data-path ./finetune_dataset/alpaca --split 100,0,0 --no-load-optim --no-load-rng --no-save-optim --no-save-rng
    --log-interval 1 --save-interval 2000 --eval-interval 2000 --eval-iters 0 --log-throughput
    --distributed-backend nccl --finetune --stage sft --is-instruction-dataset --prompt-type qwen
    --reset-position-ids --neat-pack --padded-samples --no-shuffle --load ./weights --save ./out
"""

LLAMA2_7B = """
    --use-mcore-models --tensor-model-parallel-size 8 --pipeline-model-parallel-size 1 --sequence-parallel
    --transformer-impl local --num-layers 32 --hidden-size 4096 --ffn-hidden-size 11008 --num-attention-heads 32
    --max-position-embeddings 4096 --seq-length 4096 --disable-bias-linear --swiglu --use-fused-swiglu
    --normalization RMSNorm --norm-epsilon 1e-5 --use-fused-rmsnorm --position-embedding-type rope
    --use-fused-rotary-pos-emb --untie-embeddings-and-output-weights --micro-batch-size 4 --global-batch-size 128
    --make-vocab-size-divisible-by 1 --tokenizer-type GPTSentencePieceTokenizer
    --tokenizer-model ./model_from_hf/llama-2-7b-hf/tokenizer.model --tokenizer-not-use-fast --attention-dropout 0.0
    --hidden-dropout 0.0 --train-iters 2000 --lr 5e-5 --lr-decay-style cosine --min-lr 1.25e-7
    --lr-warmup-fraction 0.01 --init-method-std 0.01 --weight-decay 1e-1 --clip-grad 1.0 --adam-beta1 0.9
    --adam-beta2 0.95 --adam-eps 1e-8 --initial-loss-scale 4096 --no-gradient-accumulation-fusion
    --no-masked-softmax-fusion --use-flash-attn --bf16 --data-path ./finetune_dataset/alpaca --split 100,0,0
    --no-load-optim --no-load-rng --log-interval 1 --save-interval 2000 --eval-interval 1000 --eval-iters 0
    --finetune --stage sft --is-instruction-dataset --prompt-type llama2 --reset-position-ids --load ./w --save ./out
    --exit-on-missing-checkpoint --distributed-timeout-minutes 120 --ckpt-format torch
"""

# Flags of facts/flags.md that the launcher reads, not this program.
OF_THE_LAUNCHER = {"--nproc_per_node"}


def problems_of(argv: list[str], world_size: int = 4) -> list[str]:
    try:
        parse_pretrain_arguments(argv, world_size)
    except ConfigError as error:
        return error.problems
    return []


def arguments_of(argv: list[str], world_size: int = 4) -> PretrainArguments:
    return parse_pretrain_arguments(argv, world_size)


# command lines


def test_the_base_command_line_breaks_no_rule() -> None:
    assert problems_of(small()) == []


def test_a_split_that_begins_with_a_minus_is_read_as_one() -> None:
    assert problems_of(small(split="-1,2,3")) == [
        "--split -1,2,3: not three numbers of at least 0, such as --split 95,5,0"
    ]


def test_qwen25_script() -> None:
    arguments = arguments_of(QWEN25_7B.split(), 8)
    assert arguments.data_parallel_size == 2 and arguments.micro_batches == 4 and arguments.global_batch_size == 8
    assert arguments.model.head_size == 128 and arguments.model.query_groups == 4
    assert arguments.vocabulary(151665).padded == 152064
    assert arguments.training.precision == "bf16" and arguments.training.loss_normalization == "token"
    assert arguments.parallel.sequence_parallel and arguments.data.neat_pack and arguments.data.shares == (1, 0, 0)


def test_llama2_script() -> None:
    arguments = arguments_of(LLAMA2_7B.split(), 8)
    assert arguments.data_parallel_size == 1 and arguments.micro_batches == 32
    assert arguments.model.query_groups == 32 and arguments.vocabulary(32000).padded == 32000
    assert arguments.model.rotary_base == 10000


@pytest.mark.parametrize("script", [QWEN25_7B, LLAMA2_7B])
def test_scripts_pass_the_rules_in_a_dry_run_without_data(script: str) -> None:
    argv = [word for word in script.split() if word not in ("--data-path", "./finetune_dataset/alpaca")]
    assert problems_of([*argv, "--dry-run"], 8) == []
    assert problems_of(argv, 8) == ["--data-path is missing: give the --output-prefix of preprocess_data.py"]


def test_every_flag_of_the_scripts_is_known(shared: Path) -> None:
    text = (shared / "facts" / "flags.md").read_text(encoding="utf-8")
    listed = text[text.index("Flags those scripts pass") : text.index("`--distributed-backend nccl` in a script")]
    flags = set(re.findall(r"--[a-z0-9][\w-]*", listed)) - OF_THE_LAUNCHER
    known = {name for group in GROUPS for flag in declared_flags(group) for name in flag.names}
    assert len(flags) > 100
    assert sorted(flags - known) == []


def test_every_flag_has_help() -> None:
    missing = [
        flag.name
        for group in GROUPS
        for flag in declared_flags(group)
        if not field_docstrings(group).get(flag.field.name)
    ]
    assert missing == []


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments;"
        "import mindspeed_llm.arguments.notices;"
        "heavy = {'torch', 'megatron', 'numpy', 'transformers', 'matplotlib'} & set(sys.modules); sys.exit(str(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("name", BROKEN)
def test_rule(name: str) -> None:
    changes, beginning = BROKEN[name]
    problems = problems_of(small(**changes))
    assert len(problems) == 1, problems
    assert problems[0].startswith(beginning)


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(name: str) -> None:
    assert problems_of(small(**ALLOWED[name])) == []


def test_problems_of_single_flags_and_rules_are_reported_together() -> None:
    problems = problems_of(
        small(neat_pack="", hidden_sizes="64", hidden_size=None, seq_length="many", bf16="", fp16="", qlora="", lr="-1")
    )
    assert problems == [
        "--hidden-sizes is not a flag of this program; did you mean --hidden-size?",
        "--qlora: QLoRA is not supported yet; leave the flag out",
        "--lr -1.0: must be at least 0",
        "--seq-length many: not a whole number",
        "--bf16 and --fp16: keep one of the flags",
        "--neat-pack needs --reset-position-ids (positions restart at 0 in each sample) or --reset-attention-mask "
        "(positions continue across samples)",
    ]


def test_an_empty_prefix_is_reported() -> None:
    assert problems_of([*small(data_path=None), "--data-path", ""]) == [
        "--data-path: a prefix is empty; give the --output-prefix of preprocess_data.py"
    ]


def test_an_empty_command_line_reports_the_required_flags() -> None:
    problems = problems_of([])
    for flag in ("num-layers", "hidden-size", "num-attention-heads", "micro-batch-size", "lr", "seq-length"):
        assert f"--{flag} is required" in problems


@given(st.dictionaries(st.sampled_from(sorted(SMALL)), st.sampled_from(["", "0", "1", "-3", "7", "x", "1e9"])))
def test_arbitrary_values_are_reported_without_a_crash(changes: dict[str, str]) -> None:
    for problem in problems_of(words({**SMALL, **changes})):
        assert problem and "\n" not in problem


# derived values


def test_sequence_parallel_is_off_with_one_tensor_rank() -> None:
    arguments = arguments_of(small(sequence_parallel=""))
    assert not arguments.parallel.sequence_parallel
    assert collect_notices(arguments, "cuda")[0] == "no effect: --sequence-parallel (--tensor-model-parallel-size is 1)"
    assert arguments_of(small(sequence_parallel="", tensor_model_parallel_size="2")).parallel.sequence_parallel


def test_defaults_that_depend_on_others() -> None:
    arguments = arguments_of(small(global_batch_size=None, tensor_model_parallel_size="2", recompute_activations=""))
    assert (arguments.data_parallel_size, arguments.global_batch_size, arguments.micro_batches) == (2, 4, 1)
    assert arguments.max_position_embeddings == 128 and arguments.virtual_stages is None
    assert arguments.training.recompute == "selective" and arguments.training.precision == "fp32"
    assert arguments.model.ffn_size == 256 and arguments.model.head_size == 8 and arguments.model.query_groups == 2


def test_virtual_stages() -> None:
    arguments = arguments_of(
        small(pipeline_model_parallel_size="2", num_layers_per_virtual_pipeline_stage="1", global_batch_size="16")
    )
    assert arguments.virtual_stages == 2


def test_default_ffn_size_with_swiglu_is_two_thirds_rounded_to_64() -> None:
    assert ModelArguments(1, 4096, 32, swiglu=True).ffn_size == 10880
    assert ModelArguments(1, 4096, 32).ffn_size == 16384


def test_vocabulary_and_its_padding() -> None:
    model = ModelArguments(1, 64, 4)
    assert model.vocabulary(32003, 2) == Vocabulary(32003, 32256)
    assert model.vocabulary(256, 2) == Vocabulary(256, 256)
    assert replace(model, padded_vocab_size=300).vocabulary(300, 2) == Vocabulary(300, 300)
    assert replace(model, padded_vocab_size=300).vocabulary(299, 2) == Vocabulary(300, 300)  # all are the model's own
    assert replace(model, padded_vocab_size=300).vocabulary(None, 2) == Vocabulary(300, 300)
    assert replace(model, vocab_size=100).vocabulary(None, 1) == Vocabulary(100, 128)
    assert replace(model, vocab_size=100).vocabulary(90, 1) == Vocabulary(100, 128)
    for wrong in (replace(model, padded_vocab_size=300), replace(model, vocab_size=300)):
        with pytest.raises(ConfigError, match="301 tokens"):
            wrong.vocabulary(301, 1)
    with pytest.raises(ConfigError, match="vocabulary is unknown"):
        model.vocabulary(None, 1)


def test_split_shares() -> None:
    assert parse_split("90,5,5") == pytest.approx((0.9, 0.05, 0.05))
    assert parse_split("969, 30, 1") == pytest.approx((0.969, 0.03, 0.001))
    assert parse_split("1") == (1, 0, 0)


def test_weights_and_prefixes() -> None:
    assert parse_data_path(["0.3", "a", "0.7", "b"]) == ([0.3, 0.7], ["a", "b"])
    assert parse_data_path(["a", "b"]) == (None, ["a", "b"])
    assert parse_data_path(["1", "2", "3"]) == (None, ["1", "2", "3"])


# notices


@pytest.mark.parametrize(
    ("changes", "device", "line"),
    [
        ({"use_flash_attn": ""}, "cpu", "no effect: --use-flash-attn ("),
        ({"use_fused_rmsnorm": ""}, "cpu", "no effect: --use-fused-rmsnorm ("),
        ({"use_fused_swiglu": ""}, "cpu", "no effect: --use-fused-swiglu ("),
        ({"use_fused_rotary_pos_emb": ""}, "cpu", "no effect: --use-fused-rotary-pos-emb ("),
        ({"use_flash_attn": ""}, "npu", None),
        (
            {"distributed_backend": "nccl"},
            "cpu",
            "--distributed-backend nccl means the device's own library: gloo on cpu",
        ),
        (
            {"distributed_backend": "nccl"},
            "npu",
            "--distributed-backend nccl means the device's own library: hccl on npu",
        ),
        ({"distributed_backend": "nccl"}, "cuda", None),
        ({}, "cpu", None),
        ({"use_mcore_models": ""}, "npu", "no effect: --use-mcore-models ("),
        ({"no_gradient_accumulation_fusion": ""}, "npu", "no effect: --no-gradient-accumulation-fusion ("),
        ({"no_masked_softmax_fusion": ""}, "npu", "no effect: --no-masked-softmax-fusion ("),
        ({"reuse_fp32_param": ""}, "npu", "no effect: --reuse-fp32-param ("),
        ({"no_shared_storage": ""}, "npu", "no effect: --no-shared-storage ("),
        ({"num_workers": "4"}, "npu", "no effect: --num-workers ("),
        ({"transformer_impl": "local"}, "npu", None),
        ({"transformer_impl": "transformer_engine"}, "cuda", "--transformer-impl transformer_engine: "),
        ({"ckpt_format": "torch"}, "cpu", "--ckpt-format torch: checkpoints are written as torch_dist"),
        ({"initial_loss_scale": "4096", "bf16": ""}, "npu", "no effect: --initial-loss-scale ("),
        ({"initial_loss_scale": "4096", "fp16": ""}, "npu", None),
        ({"make_vocab_size_divisible_by": "1"}, "npu", "no effect: --make-vocab-size-divisible-by ("),
        ({"finetune": "", "no_load_rng": ""}, "cpu", "no effect: --finetune, --no-load-rng (without --load there is"),
        ({"finetune": "", "load": "x"}, "cpu", None),
        ({"split": None}, "cpu", None),
        (
            {"variable_seq_lengths": "", "neat_pack": "", "reset_position_ids": ""},
            "cpu",
            "no effect: --variable-seq-lengths (each pack has --seq-length slots)",
        ),
        ({"pad_to_multiple_of": "4"}, "cpu", "no effect: --pad-to-multiple-of (without --variable-seq-lengths)"),
        ({"rope_scaling_factor": "4"}, "cpu", "no effect: --rope-scaling-factor (without --use-rope-scaling)"),
        (
            {"device_type": "A100", "mfu": "0.4"},
            "cuda",
            "no effect: --device-type, --mfu (without --dry-run)",
        ),
        ({"device_type": "A100", "dry_run": ""}, "cuda", None),
        ({"ddp_bucket_size": "9"}, "cpu", "no effect: --ddp-bucket-size (without --overlap-grad-reduce"),
        ({"ddp_bucket_size": "9", "overlap_grad_reduce": ""}, "cpu", None),
        ({"use_rotary_position_embeddings": ""}, "npu", None),
        ({"attention_mask_type": "causal"}, "npu", None),
        ({"no_pad_to_seq_lengths": ""}, "npu", None),
        ({"rope_scaling_type": "llama3", "low_freq_factor": "1"}, "npu", None),
        ({"low_freq_factor": "1"}, "npu", "no effect: --low-freq-factor (without --use-rope-scaling)"),
        ({"swap_attention": ""}, "npu", "no effect: --swap-attention (activations stay in the memory of the device"),
        ({"use_cp_send_recv_overlap": ""}, "npu", "no effect: --use-cp-send-recv-overlap (each sequence is on one"),
        (
            {"no_check_for_nan_in_loss_and_grad": ""},
            "npu",
            "no effect: --no-check-for-nan-in-loss-and-grad (loss and gradients are always checked; --skip-bad-st",
        ),
        (
            {"use_ascend_coc": "", "coc_parallel_num": "8", "coc_fused_kernel": "", "use_ascend_mc2": ""},
            "npu",
            "no effect: --use-ascend-mc2, --use-ascend-coc, --coc-parallel-num, --coc-fused-kernel (matrix product",
        ),
        (
            {"split": "100,0,0", "eval_iters": "10"},
            "npu",
            "--eval-iters 10: nothing is evaluated, because --split 100,0,0 gives validation no share",
        ),
        ({"split": "100,0,0", "eval_interval": "5"}, "npu", "--eval-iters 100: nothing is evaluated"),
        ({"split": "100,0,0"}, "npu", None),
        ({"split": "100,0,0", "eval_interval": "5", "eval_iters": "0"}, "npu", None),
        (
            {"data_path": None, "split": None, "train_data_path": "a", "eval_iters": "3"},
            "npu",
            "--eval-iters 3: nothing is evaluated, because --valid-data-path is not given",
        ),
        (
            {"recompute_granularity": "full", "recompute_method": "block", "recompute_activation_function": ""},
            "npu",
            "--recompute-granularity full without --recompute-num-layers: no complete layer is recomputed",
        ),
    ],
)
def test_notice(changes: dict[str, str | None], device: str, line: str | None) -> None:
    lines = collect_notices(arguments_of(small(**changes)), device)
    if line is None:
        assert lines == []
    else:
        assert len(lines) == 1 and lines[0].startswith(line)


@pytest.mark.parametrize(("given", "ranks", "multiple"), [(None, 4, 4), ("1", 4, 4), ("6", 4, 12), ("8", 4, 8)])
def test_sequence_parallelism_raises_the_padding_multiple(given: str | None, ranks: int, multiple: int) -> None:
    changes: dict[str, str | None] = {
        "variable_seq_lengths": "",
        "sequence_parallel": "",
        "tensor_model_parallel_size": str(ranks),
        "num_query_groups": str(ranks),
    }
    if given is not None:
        changes["pad_to_multiple_of"] = given
    arguments = arguments_of(small(**changes), world_size=ranks)
    assert arguments.padding_multiple == multiple
    lines = [line for line in collect_notices(arguments, "cpu") if "pads to a multiple of" in line]
    assert len(lines) == (str(multiple) != given)
    assert not lines or lines[0].startswith(
        f"--sequence-parallel: --variable-seq-lengths pads to a multiple of {multiple}"
    )


def test_padding_uses_no_multiple_unless_a_flag_requires_it() -> None:
    assert arguments_of(small(variable_seq_lengths="")).padding_multiple == 1
