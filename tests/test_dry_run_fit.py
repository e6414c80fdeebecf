"""How long, and does it fit: tokens, operations, memory against --device-type, proposals and time of a dry run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from time_limits import HANG_SECONDS
from tiny import tiny_arguments
from tiny_runs import ROOT, RUN, write_files

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import ACCELERATORS, peak_of_product
from mindspeed_llm.dry_run.memory_fit import FULL_RECOMPUTE as FULL
from mindspeed_llm.dry_run.memory_fit import propose_changes
from mindspeed_llm.errors import ConfigError

MIB = 2**20
# The packs of write_files: 5, 9, 1 and 12 tokens, and 5 slots of padding that count as a segment.
LENGTHS = (5, 9, 1, 12, 5)
PACKS = 21
BATCH = 4
LIMITED = 100 * MIB
DATA = f"{RUN.replace('--train-iters 6', '--train-epochs 2')} --split 100,0,0 --eval-iters 0"
ON_A100 = DATA.replace("--device cpu ", "--device-type A100 --mfu 0.5 --bf16 ")
BLOCK = "--recompute-granularity full --recompute-method block --recompute-num-layers 1"
DENSE = "--loss-chunk-size 0"


def planned(cases: dict[str, tuple[str, int, int, float | None]]) -> dict[str, dict[str, Any]]:
    """The plans of (flags, ranks, memory, peak) from one process."""
    commands = [[words.split(), *rest] for words, *rest in cases.values()]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests/dry_run_fit_program.py"), json.dumps(commands)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data") / "data", count=PACKS)


@pytest.fixture(scope="module")
def plans(prefix: Path) -> dict[str, dict[str, Any]]:
    data = f"--data-path {prefix}"
    big = "--micro-batch-size 4 --global-batch-size 16 --seq-length 4096 --no-save-model --data-path nowhere"
    tight = f"{ON_A100.replace('--micro-batch-size 2 --global-batch-size 4', '')} {big}"
    # What the flags of a proposal lead to is planned as a command of its own.
    changed = {flags: f"{tight} {flags}" for flags in (FULL, "--micro-batch-size 2", "--use-distributed-optimizer")}
    return planned(
        {
            "cpu": (f"{DATA} {data} {DENSE}", 1, 1, None),
            "full": (f"{DATA} {data} {DENSE} {FULL}", 1, 1, None),
            "block": (f"{DATA} {data} {DENSE} {BLOCK}", 1, 1, None),
            "selective": (f"{DATA} {data} {DENSE} --recompute-activations", 1, 1, None),
            "chunked": (f"{DATA} {data} --loss-chunk-size 4", 1, 1, None),
            "lora": (f"{DATA} {data} {DENSE} --lora-target-modules q_proj --lora-r 8", 1, 1, None),
            "fits": (f"{ON_A100} {data} {DENSE}", 2, 1000 * MIB, 2e12),
            "no peak": (f"{ON_A100} {data}", 1, 1000 * MIB, None),
            "fp32": (f"{ON_A100.replace('--bf16', '')} {data}", 1, 1000 * MIB, 2e12),
            "too large": (tight, 4, LIMITED, 2e12),
            "far too large": (tight, 4, 1 * MIB, 2e12),
            **{name: (words, 4, LIMITED, 2e12) for name, words in changed.items()},
        }
    )


# By hand: 162,368 weights, without 19,200 embeddings and 19,200 of the output layer, and without those that are no
# matrices: a norm of 64, and per layer two norms of 64 and 128 biases.
MATRICES = 162_368 - 2 * 19_200 - 64 - 4 * (2 * 64 + 128)
SQUARES = sum(length**2 for length in LENGTHS)
# Per layer and segment: n²/2 pairs of 2 · 2 · 64 operations.
ATTENTION = 4 * SQUARES * 2 * 64
DENSE_FORWARD = 2 * 32 * MATRICES
LOGITS = 2 * 32 * 19_200


def test_operations_are_those_of_the_packs_that_exist(plans: dict[str, dict[str, Any]]) -> None:
    forward = DENSE_FORWARD + ATTENTION + LOGITS
    work = plans["cpu"]["work"]
    assert work["model_flops"] == 3 * forward == work["executed_flops"]
    # Rounded up to a micro-batch of two; 27 of 32 slots are tokens.
    assert (work["packs"], work["slots"], work["tokens"]) == (PACKS + 1, 32, 27)


@pytest.mark.parametrize(
    ("name", "repeated"),
    [
        ("full", DENSE_FORWARD + ATTENTION),
        ("block", (DENSE_FORWARD + ATTENTION) / 4),  # one layer of four
        ("selective", ATTENTION),
    ],
)
def test_recomputation_repeats_a_forward_pass(name: str, repeated: float, plans: dict[str, dict[str, Any]]) -> None:
    work, plain = plans[name]["work"], plans["cpu"]["work"]
    assert work["model_flops"] == plain["model_flops"], "utilization counts the operations of the model"
    assert work["executed_flops"] - work["model_flops"] == repeated


def test_the_chunked_loss_computes_the_logits_of_trained_tokens_twice(plans: dict[str, dict[str, Any]]) -> None:
    work = plans["chunked"]["work"]
    layers = 3 * (DENSE_FORWARD + ATTENTION)
    trained = (work["model_flops"] - layers) / (3 * 2 * 19_200)
    assert 0 < trained < 27
    assert work["executed_flops"] - work["model_flops"] == pytest.approx(trained * 2 * 19_200)


def test_frozen_weights_have_no_gradients(plans: dict[str, dict[str, Any]]) -> None:
    branches = 2 * 32 * 4 * 8 * (64 + 64)  # A and B of q_proj
    expected = 2 * (DENSE_FORWARD + LOGITS) + 3 * (ATTENTION + branches)
    assert plans["lora"]["work"]["model_flops"] == expected


def test_the_plan_names_tokens_fit_and_time(plans: dict[str, dict[str, Any]]) -> None:
    lines = plans["fits"]["lines"]
    # Two epochs of 21 packs.
    assert f"tokens in all: {42 * 27:,} useful and {42 * 5} of padding" in lines
    per_pack = plans["fits"]["work"]["model_flops"]
    assert any(line.startswith(f"operations: {BATCH * per_pack / 1e6:.3g} MFLOP a step") for line in lines)
    (fit,) = [line for line in lines if line.startswith("fit:")]
    assert "the job fits: rank 0 needs" in fit and "A100 (a test)" in fit
    (time,) = [line for line in lines if line.startswith("time")]
    seconds = BATCH * per_pack / (2 * 2e12 * 0.5)
    assert f"an estimate for --mfu 0.5: {seconds:.3g} s a step, 0 s in all" in time
    assert plans["fits"]["proposals"] is None


def test_without_a_device_type_nothing_is_compared(plans: dict[str, dict[str, Any]]) -> None:
    assert not [line for line in plans["cpu"]["lines"] if line.startswith(("fit", "time", "to make it fit"))]


@pytest.mark.parametrize(("name", "reason"), [("no peak", "a test"), ("fp32", "holds for --bf16 and --fp16")])
def test_no_time_is_invented(name: str, reason: str, plans: dict[str, dict[str, Any]]) -> None:
    (line,) = [line for line in plans[name]["lines"] if line.startswith("time")]
    assert line.startswith("time: no estimate for --mfu 0.5") and reason in line


def test_proposals_lead_to_the_memory_that_they_name(plans: dict[str, dict[str, Any]]) -> None:
    plan = plans["too large"]
    limit = 0.9 * LIMITED
    assert plan["largest"] > limit and plan["proposals"]
    named = dict(plan["proposals"])
    assert all(memory <= limit for memory in named.values())
    assert FULL in named and "--micro-batch-size 2" in named
    for flags in (FULL, "--micro-batch-size 2"):
        assert plans[flags]["largest"] == named[flags]
    assert plans["--use-distributed-optimizer"]["largest"] > limit
    assert "--use-distributed-optimizer" not in named, "it would not be sufficient"
    start = plan["lines"].index("to make it fit, one of:")
    assert f"  {FULL}: {named[FULL] / 2**30:.1f} GiB" in plan["lines"][start:]


def test_where_nothing_fits_the_plan_says_so(plans: dict[str, dict[str, Any]]) -> None:
    plan = plans["far too large"]
    assert plan["proposals"] == [] and plan["smallest"] < plan["largest"]
    (line,) = [line for line in plan["lines"] if line.startswith("no change that was tried")]
    assert "use more ranks" in line and "--tensor-model-parallel-size" in line


def sizes_of(arguments: PretrainArguments) -> int:
    """A made-up memory: 100 for each pack of a micro-batch, divided by the tensor ranks; the optimizer takes 1000."""
    parallel, training = arguments.parallel, arguments.training
    optimizer = 1000 // (arguments.data_parallel_size if parallel.use_distributed_optimizer else 1)
    return 100 * training.micro_batch_size // parallel.tensor_model_parallel_size + optimizer


def test_proposals_keep_the_batch_and_the_optimizer_of_a_resumed_run() -> None:
    arguments = tiny_arguments("--micro-batch-size 4", 4)
    found = propose_changes(arguments, 700, sizes_of).fitting
    assert [each.text for each in found] == ["--use-distributed-optimizer"]
    assert propose_changes(arguments, 700, sizes_of, may_change_optimizer=False).fitting == []
    # The global batch of 16 packs followed from the ranks, so it has to be named.
    found = propose_changes(arguments, 1300, sizes_of, may_change_optimizer=False).fitting
    assert [each.text for each in found] == [
        "--micro-batch-size 2 --global-batch-size 16",
        "--tensor-model-parallel-size 2 --sequence-parallel --global-batch-size 16",
    ]
    # Together: the optimizer takes 250 of 4 ranks, a micro-batch of 1 takes 100.
    (together,) = propose_changes(arguments, 400, sizes_of).fitting
    assert together.text == "--use-distributed-optimizer --micro-batch-size 1 --global-batch-size 16"
    assert together.memory == 350
    assert dataclasses.replace(arguments) == tiny_arguments("--micro-batch-size 4", 4), "the arguments stay"


def test_changes_that_a_run_would_refuse_are_not_proposed() -> None:
    # Four heads cannot be divided by eight, and three ranks not by two.
    for ranks, sizes in ((8, [2, 4]), (3, [])):
        tried: list[int] = []

        def estimate(arguments: PretrainArguments, tried: list[int] = tried) -> int:
            tried.append(arguments.parallel.tensor_model_parallel_size)
            return 10**9

        propose_changes(tiny_arguments("", ranks), 1, estimate)
        assert sorted(set(tried) - {1}) == sizes


def test_an_estimate_that_is_refused_is_no_proposal() -> None:
    def refuse(arguments: PretrainArguments) -> int:
        raise ConfigError(["no"])

    found = propose_changes(tiny_arguments("", 4), 1, refuse)
    assert found.fitting == [] and found.smallest is None


def test_accelerators_have_sources_and_are_documented() -> None:
    text = (ROOT / "docs/layouts.md").read_text("utf-8")
    for name, accelerator in ACCELERATORS.items():
        assert accelerator.name == name and accelerator.memory_source and accelerator.peak_source
        peak = "—" if accelerator.peak_flops is None else f"{accelerator.peak_flops / 1e12:.0f}"
        assert f"| `{name}` | {accelerator.memory / MIB:,.0f} | {peak} |" in text
    assert peak_of_product("NVIDIA H100 PCIe") == ACCELERATORS["H100-PCIe"].peak_flops
    assert peak_of_product("Ascend910B3") is None
