"""LoRA on every layout gives the loss, the gradients and the norm of peft: float64, one sample at a time.

Four processes run all cases of lora_program.py in turn; each test below looks at one of them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from four_ranks import run_four_ranks
from lora_program import GRADIENT_BOUND, LONG, SHORT
from thread_counts import assert_threads_end

pytest.importorskip("peft", reason="peft is the reference of LoRA")

LOSS_BOUND = 3e-6
ALL_LINEAR = {name for name, case in SHORT.items() if case.targets == "all-linear"}
CONTROLS = {name: case for name, case in SHORT.items() if case.without}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return run_cases(folder, "short")


@pytest.fixture(scope="module")
def long_results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_cases(tmp_path_factory.mktemp("long_lora"), "long")


def run_cases(folder: Path, which: str) -> dict:
    written = folder / "results.json"
    run_four_ranks("lora_program", folder, [written], which, limit_seconds=1800 if which == "long" else 300)
    return json.loads(written.read_text())


def assert_equals_peft(own: dict) -> None:
    """Loss, norm and every gradient; the base is unchanged, and every factor has a gradient in the second step."""
    assert own["loss"] <= LOSS_BOUND and own["norm"] <= LOSS_BOUND
    assert own["gradient"] <= GRADIENT_BOUND, own["worst"]
    assert own["zero"] == [] and own["changed"] == []


@pytest.mark.parametrize("name", [name for name in SHORT if name not in CONTROLS])
def test_a_layout_equals_peft(results: dict, name: str) -> None:
    assert_equals_peft(results[name])


@pytest.mark.long
@pytest.mark.parametrize("name", list(LONG))
def test_further_layouts_families_and_targets_equal_peft(long_results: dict, name: str) -> None:
    assert_equals_peft(long_results[name])


def test_without_the_sum_over_tensor_parallel_ranks_gradients_are_wrong(results: dict) -> None:
    own = results["without sequence_parallel"]
    assert own["gradient"] > 0.1 and own["norm"] > 0.05 and own["loss"] <= LOSS_BOUND, "nothing shows in the loss"


def test_without_the_mark_of_divided_factors_the_norm_is_wrong(results: dict) -> None:
    own = results["without tensor_model_parallel"]
    assert own["norm"] > 0.05 and own["gradient"] <= GRADIENT_BOUND


def test_without_the_gradient_of_the_first_input_recomputed_layers_have_none(results: dict) -> None:
    own = results["without embedding hook"]
    assert len(own["zero"]) > 40 and own["loss"] <= LOSS_BOUND


def test_the_initial_adapter_does_not_depend_on_the_layout(results: dict) -> None:
    everything = [own["digest"] for name, own in results.items() if name in ALL_LINEAR]
    assert len(everything) > 8 and len(set(everything)) == 1


def test_only_the_targets_are_parameters(results: dict) -> None:
    """Rank 4, hidden size 64, MLP 96, four layers; q and v alone have no rows for k."""
    hidden, ffn, key, rank, layers = 64, 96, 32, 4, 4
    separate = 3 * hidden + (hidden + 2 * key) + 2 * hidden + 2 * (hidden + ffn) + ffn + hidden
    assert results["tp1"]["trained"] == layers * rank * separate
    fused = separate - 3 * hidden  # one A for query, key and value, one for gate and up
    assert results["fused, tp2, sequence parallel"]["trained"] == layers * rank * fused
    q_and_v = 2 * hidden + hidden + key
    assert results["q and v, tp4, fewer groups than ranks"]["trained"] == layers * rank * q_and_v


def test_resumed_on_other_layouts(results: dict) -> None:
    """Two steps each on TP 2, TP 1, TP 4 and PP 2 give the losses and the adapter of six on TP 2."""
    courses = results["courses"]
    whole = courses["losses"]["whole"]
    for last in ("tp4", "pp2"):
        resumed = [loss for name in ("tp2", "tp1", last) for loss in courses["losses"][name]]
        assert resumed == pytest.approx(whole, rel=3e-6) and len(set(whole)) == 6
    assert courses["resumed weights"] < 1e-5


def test_resumed_on_the_same_layout_bit_for_bit(results: dict) -> None:
    """With a distributed optimizer and several gradient buckets."""
    losses = results["courses"]["losses"]
    assert losses["buckets, first"] + losses["buckets, second"] == losses["buckets, whole"]
    assert results["courses"]["buckets"] == 0


def test_with_the_sharding_of_the_base_a_checkpoint_does_not_load(results: dict) -> None:
    assert results["courses"]["wrong sharding is refused"]


def test_whole_factors_stay_the_same_on_all_ranks_in_bfloat16(results: dict) -> None:
    """lora_courses.py compares them after the last step."""
    losses = results["courses"]["losses"]["bf16"]
    assert len(losses) == 30 and all(math.isfinite(loss) for loss in losses)


@pytest.mark.long
def test_whole_factors_stay_the_same_on_all_ranks_over_200_steps(long_results: dict) -> None:
    assert len(long_results["courses"]["losses"]["bf16"]) == 200


def test_the_initial_adapter_does_not_change_the_base(results: dict) -> None:
    assert results["base"] == {"tp1": True, "tp2": True}


def test_process_groups_of_a_finished_case_are_gone(results: dict, folder: Path) -> None:
    assert_threads_end(folder)
