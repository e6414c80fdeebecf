"""The dry run: parameters, memory and shapes of every rank, and what it says of data and checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_files import write
from time_limits import HANG_SECONDS
from tiny import GPT2_SHAPE, VOCABULARY, tiny_arguments

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.dry_run import ActivationMemory, PipelineStage, SavedByOps
from mindspeed_llm.dry_run.data_summary import DataSummary, summarize_data
from mindspeed_llm.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[1]
QWEN = ROOT / "examples/mcore/qwen25/tune_qwen25_7b_4k_full_pack.sh"
LLAMA = ROOT / "examples/mcore/llama2/tune_llama2_7B_full_pack_ptd.sh"
PLAIN = SavedByOps()
ON_CPU = SavedByOps(swiglu=True)
FUSED = SavedByOps(norm=True, swiglu=True, dropout=True, attention=True)
# The estimate leaves out a few scalars (states of random generators).
BOUND = 0.005
# With an adapter less is saved, so that the few bytes that the estimate leaves out are a larger part.
ADAPTER_BOUND = 0.02
ALL, SHARED = "all-linear", "linear_qkv linear_proj linear_fc1 linear_fc2"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
TENSOR, SEQUENCE = "--tensor-model-parallel-size", "--sequence-parallel"
BIGGER = "--seq-length 128 --num-layers 3 --hidden-size 128 --ffn-hidden-size 352 --num-attention-heads 8"

GPT2_BIGGER = f"{BIGGER} --max-position-embeddings 1024"


def dry_run(script: Path, folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script with --dry-run, as a user without data or weights starts it."""
    given = {key: value for key, value in os.environ.items() if not re.match("DATA_|CKPT_|TOKENIZER_|N(PUS|NODE)", key)}
    given |= {"PATH": f"{Path(sys.executable).parent}:{given['PATH']}", **environment}
    command = ["bash", str(script), "--dry-run", *flags]
    return subprocess.run(
        command, cwd=folder, env=given, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
    )


def looked_at(arguments: PretrainArguments) -> DataSummary:
    return summarize_data(arguments.data, arguments.tokenizer, arguments.training)


def rows_of(output: str) -> list[list[str]]:
    """Cells of the table of ranks."""
    return [line.split() for line in output.splitlines() if re.match(r"  +\d", line)]


# 28 layers of (3584 · 4608 + 4608 + 3584² + 3 · 3584 · 18944 + 2 · 3584), two of 152064 · 3584, a norm of 3584; a
# tensor rank has a quarter of all but norms. bf16 weights, float32 gradients; the optimizer's 12 bytes on two ranks.
QWEN_ROW = ["1,904,057,344", "3.55", "7.09", "10.64"]
# An eighth of Llama 2 7B but for its norms; the optimizer's 12 bytes for each parameter.
LLAMA_ROW = ["842,534,912", "1.57", "3.14", "9.42"]


@pytest.mark.parametrize(
    ("script", "parameters", "row"),
    [
        (QWEN, "7,615,616,512", QWEN_ROW),
        pytest.param(LLAMA, "6,738,415,616", LLAMA_ROW, marks=pytest.mark.long),
    ],
)
def test_7b_scripts_on_a_bare_checkout(script: Path, parameters: str, row: list[str], tmp_path: Path) -> None:
    done = dry_run(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"model: {parameters} parameters in bf16" in done.stdout
    assert "all 8 ranks were built" in done.stdout
    assert (
        "steps per epoch unknown" in done.stdout
        and "does not exist here; a run needs a checkpoint there" in done.stdout
    )
    rows = rows_of(done.stdout)
    assert [cells[0] for cells in rows] == [str(rank) for rank in range(8)]
    assert all(cells[5:9] == row for cells in rows)
    parts = [[float(cell) for cell in cells[6:]] for cells in rows]
    assert all(sum(sizes) == pytest.approx(total, abs=0.03) for *sizes, total in parts)
    assert f"largest: rank 0 with {parts[0][-1]:.1f} GiB" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"], "nothing but the script's log is written"


@pytest.mark.parametrize(
    "device", ["npu", *(pytest.param(device, marks=pytest.mark.long) for device in ("cuda", "cpu"))]
)
def test_a_dry_run_plans_for_a_missing_device(device: str, tmp_path: Path) -> None:
    done = dry_run(QWEN, tmp_path, "--num-layers", "1", "--device", device)
    assert done.returncode == 0, done.stdout
    assert f"memory on each rank in GiB, estimated for {device}:" in done.stdout


def test_a_script_with_wrong_flags_names_them_all(tmp_path: Path) -> None:
    done = dry_run(QWEN, tmp_path, "--num-lairs", "2", "--global-batch-size", "7", "--min-lr", "1")
    errors = [line for line in done.stdout.splitlines() if line.startswith("pretrain_gpt.py: error:")]
    assert done.returncode == 2 and len(errors) == 3, done.stdout
    for flag in ("did you mean --num-layers", "--global-batch-size 7", "--min-lr"):
        assert any(flag in error for error in errors)


def test_a_dry_run_with_existing_data_plans_epochs(tmp_path: Path) -> None:
    prefix = write(tmp_path / "alpaca", 10)
    smaller = ["--num-layers", "2", "--seq-length", "8", "--padded-vocab-size", "1024"]
    done = dry_run(QWEN, tmp_path, *smaller, DATA_PATH=prefix)
    assert done.returncode == 0, done.stdout
    assert "data: neat packs: 10 to train on" in done.stdout
    assert "10 rows, fill 75.00%, 20 samples, 2.0 in each row, 66.7% of the tokens trained" in done.stdout
    assert "was made with one of 1,000 tokens" in done.stdout
    # 10 packs become 16, two steps of 8.
    assert "about 48 tokens" in done.stdout and "an epoch is 2.0 steps, so the run is 1,000.00 epochs" in done.stdout
    refused = dry_run(QWEN, tmp_path, *smaller, "--seq-length", "16", DATA_PATH=prefix)
    assert refused.returncode == 2 and "use --seq-length 8" in refused.stdout


@pytest.fixture(scope="module")
def plans() -> dict[str, Any]:
    """Several plans from one process for the meta device."""
    cases = {
        "tensor 2": (2, f"{BIGGER} --tensor-model-parallel-size 2 --recompute-activations"),
        "sequence 2": (
            2,
            f"{BIGGER} --tensor-model-parallel-size 2 --sequence-parallel --bf16 --recompute-activations",
        ),
        "fewer groups": (4, f"{BIGGER} --tensor-model-parallel-size 4 --sequence-parallel --recompute-activations"),
        "1F1B": (4, "--pipeline-model-parallel-size 4 --global-batch-size 8"),
        "few micro-batches": (4, "--pipeline-model-parallel-size 4 --global-batch-size 2"),
        "interleaved": (
            2,
            "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --global-batch-size 8",
        ),
        "tied": (4, "--pipeline-model-parallel-size 2 --tensor-model-parallel-size 2 TIED"),
        "distributed": (
            4,
            "--use-distributed-optimizer --bf16 --overlap-grad-reduce --overlap-param-gather --global-batch-size 8",
        ),
        "gpt2, tensor 2": (2, f"{GPT2_BIGGER} {TENSOR} 2 --recompute-activations GPT2"),
        "gpt2, sequence 2": (
            2,
            f"{GPT2_BIGGER} {TENSOR} 2 {SEQUENCE} --bf16 --recompute-activations --hidden-dropout 0.1 GPT2",
        ),
        "gpt2, stages": (4, f"--pipeline-model-parallel-size 2 {TENSOR} 2 GPT2"),
        "plain bf16": (4, "--bf16 --global-batch-size 8"),
        "large": (
            256,
            "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --use-distributed-optimizer "
            "--recompute-granularity full --recompute-method block --recompute-num-layers 1 --global-batch-size 512",
        ),
    }
    return plans_of(cases | {f"adapter, {name}": case for name, case in TENSOR_PARALLEL_ADAPTERS.items()} | ADAPTERS)


def plans_of(cases: dict[str, tuple[int, str]]) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests/dry_run_memory_program.py"), json.dumps(list(cases.values()))]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


def adapter(targets: str, flags: str = "") -> str:
    return f"{flags} --lora-r 16 --lora-target-modules {targets}"


METHODS = {
    "prompt": "--tuning prompt --virtual-tokens 4",
    "p-tuning": "--tuning p-tuning --virtual-tokens 4 --prompt-encoder-size 8",
    "prefix": "--tuning prefix --virtual-tokens 4",
    "adapter": "--tuning adapter --adapter-size 16",
}

# Attention is recomputed, because on the meta device it saves something else than the CPU's.
TENSOR_PARALLEL_ADAPTERS = {
    "tensor 2": (2, f"{BIGGER} {TENSOR} 2 {adapter(ALL, '--recompute-activations --lora-dropout 0.1')}"),
    "sequence 2": (
        2,
        f"{BIGGER} {TENSOR} 2 {SEQUENCE} --bf16 {adapter(SHARED, '--recompute-activations')}",
    ),
    "fewer groups": (
        4,
        f"{BIGGER} {TENSOR} 4 {SEQUENCE} {adapter('q_proj v_proj', '--recompute-activations')}",
    ),
    "full, sequence 2": (2, f"{BIGGER} {TENSOR} 2 {SEQUENCE} {adapter(ALL, FULL)}"),
    "activation function": (
        2,
        f"{BIGGER} {TENSOR} 2 --bf16 --recompute-activations --recompute-activation-function --lora-dropout 0.1 "
        f"{adapter('down_proj')}",
    ),
}
# The tiny model's parameters and optimizer state.
ADAPTERS = {
    "adapter": (1, f"--bf16 {adapter(ALL)}"),
    "adapter, shared A": (1, adapter(SHARED)),
    "adapter, tensor 4": (4, f"{TENSOR} 4 --bf16 {adapter(ALL)}"),
    "adapter, 1F1B": (4, f"--pipeline-model-parallel-size 4 --global-batch-size 8 {adapter(ALL)}"),
    **{f"method, {name}": (1, flags) for name, flags in METHODS.items()},
    "method, prompt, 1F1B": (2, f"--pipeline-model-parallel-size 2 --use-distributed-optimizer {METHODS['prompt']}"),
    "method, prefix, tensor 4": (4, f"{TENSOR} 4 --bf16 {METHODS['prefix']}"),
    "adapter, distributed": (4, f"--use-distributed-optimizer --bf16 --global-batch-size 8 {adapter(ALL)}"),
}


@pytest.mark.parametrize("precision", ["", "--bf16"])
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--micro-batch-size 3",
        "--hidden-dropout 0.1",
        "--recompute-granularity selective",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 3",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 2",
        "--num-query-groups 8 --rotary-percent 0.5 --kv-channels 24",
        "--qk-layernorm",
        "--recompute-activation-function",
        "--recompute-granularity full --recompute-method block --recompute-num-layers 1 "
        "--recompute-activation-function --recompute-activation-function-num-layers 1",
    ],
)
def test_planned_activations_equal_what_autograd_saves(flags: str, precision: str, one_rank: None) -> None:
    compare_with_autograd(tiny_arguments(f"{BIGGER} {precision} {flags}"))


ADAPTER_RECOMPUTE = (
    "",
    "--recompute-granularity selective",
    FULL,
    "--recompute-granularity full --recompute-method block --recompute-num-layers 2",
    "--recompute-activation-function",
)
CHECKED_ADAPTERS = [
    (targets, flags, precision, dropout)
    for targets in (ALL, SHARED, "q_proj v_proj", "down_proj")
    for flags in ADAPTER_RECOMPUTE
    for precision in ("", "--bf16")
    for dropout in ("", "--lora-dropout 0.1 --hidden-dropout 0.1")
]
# Every value of each parameter, and every pair of targets and recomputation once.
SHORT_ADAPTERS = [case for number, case in enumerate(CHECKED_ADAPTERS) if number % 4 == number // 4 % 4]


@pytest.mark.parametrize(
    ("targets", "flags", "precision", "dropout"),
    [pytest.param(*case, marks=[] if case in SHORT_ADAPTERS else pytest.mark.long) for case in CHECKED_ADAPTERS],
)
def test_planned_activations_of_an_adapter(
    targets: str, flags: str, precision: str, dropout: str, one_rank: None
) -> None:
    compare_with_autograd(tiny_arguments(f"{BIGGER} {precision} {dropout} {adapter(targets, flags)}"))


CHECKED_METHODS = list(itertools.product(METHODS, ADAPTER_RECOMPUTE, ("", "--bf16", "--qk-layernorm")))


@pytest.mark.parametrize(
    ("method", "flags", "further"),
    [
        pytest.param(*case, marks=[] if number % 4 == number // 4 % 4 else pytest.mark.long)
        for number, case in enumerate(CHECKED_METHODS)
    ],
)
def test_planned_activations_of_other_methods(method: str, flags: str, further: str, one_rank: None) -> None:
    compare_with_autograd(tiny_arguments(f"{BIGGER} {further} {METHODS[method]} {flags}"), ADAPTER_BOUND)


def test_planned_parameters_of_other_methods(plans: dict[str, Any]) -> None:
    """Four layers of hidden size 64 with keys of 32; the second stage has no virtual tokens."""
    encoder = 8 * 64 + 8 + 8 * 8 + 8 + 64 * 8 + 64
    trained = {"prompt": 4 * 64, "p-tuning": 4 * 64 + encoder, "prefix": 4 * 2 * 4 * 32}
    trained |= {"adapter": 4 * 2 * (2 * 64 * 16 + 16 + 64), "prefix, tensor 4": 4 * 2 * 4 * 32, "prompt, 1F1B": 4 * 64}
    assert {name: plans[f"method, {name}"]["trained"] for name in trained} == trained
    first, second = plans["method, prompt, 1F1B"]["ranks"]
    assert first["gradients"] > 0 and second["gradients"] == second["optimizer"] == 0


def test_planned_gelu_activations_equal_what_autograd_saves(one_rank: None) -> None:
    arguments = tiny_arguments(BIGGER)
    compare_with_autograd(dataclasses.replace(arguments, model=dataclasses.replace(arguments.model, swiglu=False)))


@pytest.mark.parametrize("precision", ["", "--bf16"])
@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--hidden-dropout 0.1 --micro-batch-size 2",
        "--group-query-attention --num-query-groups 2",
        f"--num-layers 8 {FULL}",  # in bf16 the CPU saves mean and deviation in bf16 too, a larger part of few layers
        "--recompute-granularity selective --recompute-activation-function",
    ],
)
def test_planned_activations_of_gpt2_equal_what_autograd_saves(flags: str, precision: str, one_rank: None) -> None:
    compare_with_autograd(tiny_arguments(f"{GPT2_BIGGER} {precision} {flags}", shape=GPT2_SHAPE))


def compare_with_autograd(arguments: PretrainArguments, bound: float = BOUND) -> None:
    from saved_tensors import saved_bytes
    from tiny_model import derived_of

    from mindspeed_llm.devices import Device
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer

    derived = derived_of(arguments, 3)
    model_and_optimizer = setup_model_and_optimizer(arguments, Device("cpu"), derived)
    estimate = ActivationMemory(arguments, model_and_optimizer.padded_vocab_size, ON_CPU, derived.loss.chunk_size)
    expected = estimate.embedding() + estimate.chunk(arguments.model.num_layers) + estimate.head()
    assert saved_bytes(model_and_optimizer, arguments, torch.device("cpu")) == pytest.approx(expected, rel=bound)


@pytest.mark.parametrize("name", ["tensor 2", "sequence 2", "fewer groups", "gpt2, tensor 2", "gpt2, sequence 2"])
def test_planned_tensor_parallel_activations_equal_what_autograd_saves(name: str, plans: dict[str, Any]) -> None:
    assert plans[name]["saved"] == pytest.approx(plans[name]["estimate"], rel=BOUND)


@pytest.mark.parametrize("name", TENSOR_PARALLEL_ADAPTERS)
def test_planned_tensor_parallel_activations_of_an_adapter(name: str, plans: dict[str, Any]) -> None:
    plan = plans[f"adapter, {name}"]
    assert plan["saved"] == pytest.approx(plan["estimate"], rel=ADAPTER_BOUND)


@pytest.mark.long
def test_planned_activations_of_adapters_on_all_tensor_parallel_layouts() -> None:
    layouts = [(1, ""), *((ranks, f"{TENSOR} {ranks} {further}") for ranks in (2, 4) for further in ("", SEQUENCE))]
    recompute = ("--recompute-activations", FULL, "--recompute-activations --recompute-activation-function")
    cases = {
        f"{layout}, {flags}, {targets}, {precision}, {dropout}": (
            ranks,
            f"{BIGGER} {layout} {precision} {dropout} {adapter(targets, flags)}",
        )
        for ranks, layout in layouts
        for flags in recompute
        for targets in (ALL, SHARED, "q_proj v_proj", "k_proj up_proj", "down_proj")
        for precision in ("", "--bf16")
        for dropout in ("", "--lora-dropout 0.1")
    }
    plans = plans_of(cases)
    errors = {name: plan["saved"] / plan["estimate"] - 1 for name, plan in plans.items()}
    assert {name: error for name, error in errors.items() if abs(error) > ADAPTER_BOUND} == {}


def test_an_adapter_saves_what_a_fused_kernel_does_not() -> None:
    """Without an input of linear_proj to share, the kernel alone saves its output, which recomputation frees."""

    def memory(flags: str) -> ActivationMemory:
        return ActivationMemory(tiny_arguments(f"--bf16 {flags}"), VOCABULARY, FUSED)

    output = 32 * 64 * 2  # [T, heads · head size] in bf16
    full = memory("")
    on_output, dropped = memory(adapter("o_proj")), memory(adapter("o_proj", "--lora-dropout 0.1"))
    elsewhere = memory(adapter("q_proj"))
    assert full.context() == on_output.context() == dropped.context() == output and elsewhere.context() == 0
    assert on_output.kernel() == full.kernel()
    assert dropped.kernel() == elsewhere.kernel() == full.kernel() + output
    selective = memory(adapter("q_proj", "--recompute-granularity selective"))
    assert elsewhere.chunk(4) - selective.chunk(4) == 4 * elsewhere.kernel() == 4 * selective.recomputed(4)


def test_peak_activation_memory_of_a_stage() -> None:
    one = ActivationMemory(tiny_arguments("--bf16"), VOCABULARY, FUSED)
    head = one.head() + one.transient_head_memory()
    assert one.peak(PipelineStage((4,), 1, first=True, last=True)) == one.embedding() + 4 * one.layer() + head
    assert one.peak(PipelineStage((4,), 3, first=True, last=False)) == 3 * (one.embedding() + 4 * one.layer())
    assert one.peak(PipelineStage((2, 2), 5, first=False, last=False)) == 5 * 2 * one.layer()
    full = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 2"
    again = ActivationMemory(tiny_arguments(f"--bf16 {full}"), VOCABULARY, FUSED)
    assert again.recomputed(4) == 2 * again.layer()
    both = again.peak(PipelineStage((4,), 1, first=False, last=True))
    assert (
        both == again.chunk(4) + max(head, 2 * again.layer()) < one.peak(PipelineStage((4,), 1, first=False, last=True))
    )


def test_fused_operators_save_fewer_activations() -> None:
    from mindspeed_llm.model import select_fused_ops

    arguments = tiny_arguments("--bf16 --use-fused-swiglu --hidden-dropout 0.1")
    fused, plain = (ActivationMemory(arguments, VOCABULARY, operators) for operators in (FUSED, PLAIN))
    assert fused.norm() < plain.norm() and fused.mlp() < plain.mlp() and fused.dropout() < plain.dropout()
    assert plain.kernel() == fused.kernel() + plain.context()
    operators = {
        device: select_fused_ops(arguments.device, arguments.model, device) for device in ("cpu", "cuda", "npu")
    }
    assert SavedByOps.of(operators["cuda"], "torch varlen") == FUSED
    assert SavedByOps.of(operators["npu"], "segments") == SavedByOps(swiglu=True)
    assert SavedByOps.of(operators["cpu"], "segments") == ON_CPU
    on_ascend = SavedByOps.of(operators["npu"], None)
    assert on_ascend.fused == ["swiglu", "attention"] and on_ascend.row == 64


@pytest.mark.parametrize(
    ("name", "in_flight"), [("1F1B", (4, 3, 2, 1)), ("few micro-batches", (2, 2, 2, 1)), ("interleaved", (5, 3))]
)
def test_micro_batches_in_flight(name: str, in_flight: tuple[int, ...], plans: dict[str, Any]) -> None:
    one = ActivationMemory(tiny_arguments(), plans[name]["padded"], ON_CPU, plans[name]["loss_chunk_size"])
    ranks = plans[name]["ranks"]
    for number, (rank, passes) in enumerate(zip(ranks, in_flight, strict=True)):
        stage = PipelineStage(tuple(rank["layers"]), passes, first=number == 0, last=number == len(ranks) - 1)
        assert rank["pipeline"] == number and rank["activations"] == one.peak(stage)


def test_optimizer_and_gradients(plans: dict[str, Any]) -> None:
    model = plans["plain bf16"]["parameters"]
    for rank in plans["plain bf16"]["ranks"]:
        assert (rank["weights"], rank["gradients"], rank["optimizer"]) == (2 * model, 4 * model, 12 * model)
    for rank in plans["1F1B"]["ranks"]:
        own = rank["parameters"]
        assert (rank["weights"], rank["gradients"], rank["optimizer"]) == (4 * own, 4 * own, 8 * own)
    shards = [rank["optimizer"] for rank in plans["distributed"]["ranks"]]
    assert sum(shards) == 12 * model and max(shards) <= 12 * (model / 4 + 512)
    assert all(rank["gradients"] >= 4 * model for rank in plans["distributed"]["ranks"])


# Sizes of the tiny model: hidden 64, query 64, key 32, MLP 96, 4 layers. A [16, input], B [output, 16].
TRAINED = 4 * 16 * ((3 * 64 + 64 + 2 * 32) + (64 + 64) + 2 * (64 + 96) + (96 + 64))
TRAINED_SHARED = TRAINED - 4 * 16 * 3 * 64
# Tensor parallelism 4, more ranks than groups: A of column-parallel layers and of linear_qkv also B are whole; A of
# row-parallel layers and B of linear_fc1 are divided by 4.
TRAINED_OF_RANK = 4 * 16 * ((3 * 64 + 64 + 2 * 32) + (16 + 64) + 2 * (64 + 24) + (24 + 64))


def test_parameters_gradients_and_optimizer_of_an_adapter(plans: dict[str, Any]) -> None:
    base = plans["plain bf16"]["parameters"]
    (rank,) = plans["adapter"]["ranks"]
    assert (plans["adapter"]["parameters"], plans["adapter"]["trained"]) == (base + TRAINED, TRAINED)
    sizes = (rank["weights"], rank["gradients"], rank["optimizer"])
    assert sizes == (2 * (base + TRAINED), 4 * TRAINED, 12 * TRAINED)
    (rank,) = plans["adapter, shared A"]["ranks"]
    assert plans["adapter, shared A"]["trained"] == TRAINED_SHARED
    sizes = (rank["weights"], rank["gradients"], rank["optimizer"])
    assert sizes == (4 * (base + TRAINED_SHARED), 4 * TRAINED_SHARED, 8 * TRAINED_SHARED)
    for rank in plans["adapter, tensor 4"]["ranks"]:
        assert (rank["gradients"], rank["optimizer"]) == (4 * TRAINED_OF_RANK, 12 * TRAINED_OF_RANK)
    for rank in plans["adapter, 1F1B"]["ranks"]:
        assert (rank["gradients"], rank["optimizer"]) == (TRAINED, 2 * TRAINED), "a quarter of the layers"
    shards = [rank["optimizer"] for rank in plans["adapter, distributed"]["ranks"]]
    assert sum(shards) == 12 * TRAINED and max(shards) <= 12 * (TRAINED / 4 + 512)
    for name in ("tensor 4", "1F1B", "distributed"):
        plan = plans[f"adapter, {name}"]
        assert (plan["parameters"], plan["trained"]) == (base + TRAINED, TRAINED), name


def test_parameters_of_one_copy_are_counted_once(plans: dict[str, Any]) -> None:
    whole = plans["plain bf16"]["parameters"]
    assert whole == sum(p.numel() for p in _tiny_model_parameters())
    for name in ("1F1B", "interleaved", "distributed", "large"):
        assert plans[name]["parameters"] == whole, name
    assert plans["tied"]["parameters"] == whole - VOCABULARY * 64
    assert sum(rank["parameters"] for rank in plans["tied"]["ranks"]) > whole, "both stages hold the embedding"


def _tiny_model_parameters() -> list[torch.Tensor]:
    """The tiny model's, from its shape: 4 layers, hidden 64, MLP 96, 4 heads of 16 in 2 groups, untied, QKV bias."""
    layer = [(128, 64), (128,), (64, 64), (192, 64), (64, 96), (64,), (64,)]
    shapes = [*layer * 4, (64,), (VOCABULARY, 64), (VOCABULARY, 64)]
    return [torch.empty(shape, device="meta") for shape in shapes]


def test_a_large_job_is_built_by_kind(plans: dict[str, Any]) -> None:
    ranks = plans["large"]["ranks"]
    assert [(r["rank"], r["rank_count"]) for r in ranks] == [(0, 126), (126, 2), (128, 126), (254, 2)]
    assert [(r["tensor"], r["pipeline"], r["data"]) for r in ranks] == [(0, 0, 0), (0, 0, 63), (0, 1, 0), (0, 1, 63)]


def test_existing_data_is_checked_and_missing_data_is_reported(tmp_path: Path) -> None:
    nowhere = looked_at(tiny_arguments(f"--data-path {tmp_path / 'none'}"))
    assert (nowhere.kind, nowhere.packs, nowhere.vocabulary) == (None, {}, None)
    prefix = write(tmp_path / "alpaca", 10)
    here = looked_at(tiny_arguments(f"--data-path {prefix} --seq-length 8"))
    assert (here.kind, here.packs) == ("neat packs", {"train": 10})
    assert here.fill == 0.75 and here.vocabulary == 1000
    with pytest.raises(ConfigError, match="--seq-length 16"):
        looked_at(tiny_arguments(f"--data-path {prefix} --seq-length 16"))
    with pytest.raises(ConfigError, match="neither"):
        (tmp_path / "tokenizer").mkdir()
        looked_at(tiny_arguments(f"--tokenizer-type PretrainedFromHF --tokenizer-name-or-path {tmp_path}/tokenizer"))


def test_what_a_run_would_start_from(tmp_path: Path, one_rank: None) -> None:
    from mindspeed_llm.dry_run.job_plan import _start as start_of

    def _start(arguments: PretrainArguments, kind: str):
        return start_of(arguments, kind, looked_at(arguments))

    assert "random weights" in _start(tiny_arguments(), "cpu").reason
    assert "does not exist here" in _start(tiny_arguments(f"--load {tmp_path / 'none'} --finetune"), "cpu").reason
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        _start(tiny_arguments(f"--load {empty} --finetune"), "cpu")
    (empty / "iter_0000007").mkdir()
    (empty / "latest_checkpointed_iteration.txt").write_text("7\n")
    assert "iter_0000007" in _start(tiny_arguments(f"--load {empty} --finetune"), "cpu").reason
    with pytest.raises(CheckpointError, match="another run"):
        _start(tiny_arguments(f"--load {tmp_path / 'none'} --finetune --save {empty}"), "cpu")


def test_the_parameters_of_gpt2_are_those_of_transformers(plans: dict[str, Any]) -> None:
    """Position table, and biases of norms and linear layers, which tensor parallelism divides or not."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which is not installed")
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=64,
        n_layer=4,
        n_head=4,
        n_inner=96,
        bos_token_id=0,
        eos_token_id=0,
    )
    assert plans["gpt2, stages"]["parameters"] == transformers.GPT2LMHeadModel(config).num_parameters()
