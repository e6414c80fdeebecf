"""Every layout gives the loss, the gradients and the updated weights of a plain model: unsharded, unpacked, float64.

Four processes train all layouts of layouts_program.py in turn; each test below looks at one of them. Bounds for float32
leave room for sums taken in another order; the errors seen are about a hundredth of them.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch
from four_ranks import run_four_ranks
from layouts_program import CASES, LONG_CASES, STEPS
from thread_counts import assert_threads_end

LOSS_BOUND = 1e-5
NORM_BOUND = 1e-5
GRADIENT_BOUND = 1e-4  # of each tensor, relative to its norm
WEIGHT_BOUND = 1e-5  # after five steps at a learning rate of 1e-4, that is updates of about 5e-4
BF16 = [name for name in CASES if name.startswith("bf16")]
GOLDEN = [name for name in CASES if name.startswith("golden")]
FLOAT32 = [name for name in CASES if name not in (*BF16, *GOLDEN)]
GOLDEN_FILE = Path(__file__).with_name("golden_losses.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def results(folder):
    """Errors of every case against the reference."""
    return run_cases(folder, "short")


@pytest.fixture(scope="module")
def long_results(tmp_path_factory):
    return run_cases(tmp_path_factory.mktemp("long_layouts"), "long")


def run_cases(folder: Path, which: str) -> dict:
    written = folder / "results.json"
    run_four_ranks("layouts_program", folder, [written], which)
    return json.loads(written.read_text())


def worst(errors: dict[str, float]) -> tuple[float, str]:
    name = max(errors, key=errors.__getitem__)
    return errors[name], name


@pytest.mark.parametrize("name", FLOAT32)
def test_a_layout_equals_the_reference(results, name):
    assert_equals_reference(results[name])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in LONG_CASES if not name.startswith("bf16")])
def test_a_layout_equals_the_reference_with_other_divisions_of_the_batch(long_results, name):
    assert_equals_reference(long_results[name])


def assert_equals_reference(own):
    """Loss, gradient norm and every gradient at each of five steps, and the weights after them."""
    assert len(own["gradients"]) == STEPS
    assert own["loss"] <= LOSS_BOUND
    assert own["norm"] <= NORM_BOUND
    for step in own["gradients"]:
        assert worst(step) <= (GRADIENT_BOUND, "")
    assert worst(own["weights"]) <= (WEIGHT_BOUND, "")


@pytest.mark.parametrize("name", BF16)
def test_bfloat16_errors_are_not_larger_on_any_layout(results, name):
    assert_errs_no_more(results[name], results[BF16[0]])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in LONG_CASES if name.startswith("bf16")])
def test_bfloat16_errors_are_not_larger_on_further_layouts(long_results, name):
    assert_errs_no_more(long_results[name], long_results[BF16[0]])


def assert_errs_no_more(own, one_rank):
    """Rounding differs, but no layout may err more than twice as much as one rank does, over the five steps."""
    assert own["loss_rms"] <= 2 * one_rank["loss_rms"]
    assert own["norm_rms"] <= 2 * one_rank["norm_rms"]
    for tensor, error in own["gradient_rms"].items():
        assert error <= 2 * one_rank["gradient_rms"][tensor], tensor
    assert worst(own["weights"])[0] <= 2 * worst(one_rank["weights"])[0]
    assert 1e-3 < own["gradient_rms"]["all"] < 2e-2, "rounded to 8 bits, and no worse than that"


def test_in_bfloat16_the_chunked_loss_errs_no_more_than_the_dense_one(results):
    """Over all gradients. Errors of five losses, or of a small tensor, depend on the rounding of the processor."""
    chunked, dense = results[BF16[0]], results["bf16, dense loss"]
    assert chunked["gradient_rms"]["all"] <= 1.1 * dense["gradient_rms"]["all"]
    assert_errs_no_more(chunked, dense)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses(results, name):
    """Losses of 20 steps to the last bit on the kind of machine that wrote them, close by elsewhere.

    After a change that is meant to alter them: MINDSPEED_LLM_GOLDEN=write pytest tests/test_training_layouts.py
    """
    if os.environ.get("MINDSPEED_LLM_GOLDEN") == "write":
        written = {"machine": machine(), "losses": {name: results[name]["losses"] for name in GOLDEN}}
        GOLDEN_FILE.write_text(json.dumps(written, indent=1) + "\n")
    golden = json.loads(GOLDEN_FILE.read_text())
    assert results[name]["losses"] == pytest.approx(golden["losses"][name], rel=1e-4)
    if golden["machine"] == machine():
        assert results[name]["losses"] == golden["losses"][name]


def machine() -> str:
    """What decides how sums are rounded: processor, its vector instructions, and torch."""
    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def test_the_steps_move_the_weights(results):
    """The bounds mean something: losses of different batches differ, and the two models do too."""
    losses = results["tp1 pp1 dp1, 1 × 4"]["losses"]
    assert len({round(loss, 3) for loss in losses}) == len(losses)
    assert abs(losses[0] - results["tied"]["losses"][0]) > 1e-3


def test_process_groups_of_a_finished_case_are_gone(results, folder):
    assert_threads_end(folder)
