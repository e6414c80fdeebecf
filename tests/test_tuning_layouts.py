"""Prefix, prompt and P-tuning and bottleneck adapters give the reference's loss, gradients and norm on every layout.

The reference is peft, for bottleneck adapters a module of its own, in float64, one sample at a time; here packs with
reserved slots pass the dataloader. Four processes run all cases of tuning_program.py in turn.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from four_ranks import run_four_ranks
from lora_program import GRADIENT_BOUND
from thread_counts import assert_threads_end
from tuning_program import COURSES, LONG, SHORT, STAGES, P

pytest.importorskip("peft", reason="peft is the reference of virtual tokens")

LOSS_BOUND = 3e-6
CONTROLS = {name: case for name, case in SHORT.items() if case.without}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return run_cases(folder, "short")


@pytest.fixture(scope="module")
def long_results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_cases(tmp_path_factory.mktemp("long_tuning"), "long")


def run_cases(folder: Path, which: str) -> dict:
    written = folder / "results.json"
    run_four_ranks("tuning_program", folder, [written], which, limit_seconds=3600 if which == "long" else 300)
    return json.loads(written.read_text())


def assert_equals_reference(own: dict) -> None:
    """Loss, norm and every gradient; the base is unchanged, and everything has a gradient in the second step."""
    assert own["loss"] <= LOSS_BOUND and own["norm"] <= LOSS_BOUND
    assert own["gradient"] <= GRADIENT_BOUND, own["worst"]
    assert own["zero"] == [] and own["changed"] == []


@pytest.mark.parametrize("name", [name for name in SHORT if name not in CONTROLS])
def test_a_layout_equals_the_reference(results: dict, name: str) -> None:
    assert_equals_reference(results[name])


@pytest.mark.long
@pytest.mark.parametrize("name", list(LONG))
def test_further_layouts_families_and_recomputation_equal_the_reference(long_results: dict, name: str) -> None:
    assert_equals_reference(long_results[name])


@pytest.mark.parametrize("method", ["prompt", "adapter"])
def test_without_the_sum_over_tensor_parallel_ranks_gradients_are_wrong(results: dict, method: str) -> None:
    own = results[f"{method}, without sequence_parallel"]
    assert own["gradient"] > 0.1 and own["norm"] > 0.005 and own["loss"] <= LOSS_BOUND, "nothing shows in the loss"


def test_without_the_mark_of_a_divided_prefix_the_norm_is_wrong(results: dict) -> None:
    own = results["prefix, without tensor_model_parallel"]
    assert own["norm"] > 0.05 and own["gradient"] <= GRADIENT_BOUND


def test_without_the_sum_of_shared_groups_the_gradient_of_a_prefix_is_wrong(results: dict) -> None:
    own = results["prefix, without group sum"]
    assert own["gradient"] > 0.1 and own["loss"] <= LOSS_BOUND


def test_without_the_gradient_of_the_first_input_recomputed_layers_have_none(results: dict) -> None:
    own = results["prefix, without embedding hook"]
    assert len(own["zero"]) == 8 and own["loss"] <= LOSS_BOUND


def test_a_prefix_that_predicts_the_first_token_is_not_that_of_peft(results: dict) -> None:
    assert results["prefix, without first token rule"]["loss"] > 1e-4


def test_a_rotated_prefix_is_not_that_of_peft(results: dict) -> None:
    assert results["prefix, without unrotated keys"]["loss"] > 1e-4


@pytest.mark.parametrize("method", COURSES)
def test_resumed_on_other_layouts(results: dict, method: str) -> None:
    """Two steps each on TP 2, TP 1, TP 4 and PP 2 give the losses and the adapter of six on TP 2."""
    courses = results["courses"][method]
    losses = courses["losses"]
    for last in ("tp4", "pp2"):
        resumed = [loss for name in ("tp2", "tp1", last) for loss in losses[name]]
        assert resumed == pytest.approx(losses["whole"], rel=3e-6) and len(set(losses["whole"])) == 6
    assert courses["resumed weights"] < 1e-5
    assert losses["tp2"] + losses["again"] == losses["whole"] and courses["same layout"] == 0, "bit for bit"


@pytest.mark.long
@pytest.mark.parametrize("method", ["prompt", "prefix", "adapter"])
def test_other_methods_resumed_on_other_layouts(long_results: dict, method: str) -> None:
    test_resumed_on_other_layouts(long_results, method)


def test_a_stage_without_a_virtual_token_is_saved_and_loaded(results: dict) -> None:
    """With fp16, and with a distributed optimizer: the second stage has nothing to train."""
    losses = results["courses"]["p-tuning"]["losses"]
    for name in STAGES:
        assert losses[f"{name}, first"] + losses[f"{name}, second"] == losses[f"{name}, whole"], name


@pytest.mark.parametrize("method", COURSES)
def test_what_is_not_divided_stays_the_same_on_all_ranks_in_bfloat16(results: dict, method: str) -> None:
    """tuning_program.py compares it after the last step."""
    losses = results["courses"][method]["losses"]["bf16"]
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("method", COURSES)
def test_the_initial_adapter_does_not_depend_on_the_layout(results: dict, method: str) -> None:
    digests = results["courses"][method]["digests"]
    assert len(digests) == 3 and len(set(digests.values())) == 1


@pytest.mark.long
def test_the_initial_bottleneck_does_not_change_the_base(long_results: dict) -> None:
    courses = long_results["courses"]
    assert courses["base alone"] == courses["adapter"]["losses"]["whole"][0]


def test_only_the_adapter_is_trained(results: dict) -> None:
    """Hidden size 64, keys 32, four layers; an encoder of size 24, bottlenecks of size 6."""
    hidden, key, layers, size, bottleneck = 64, 32, 4, 24, 6
    encoder = size * hidden + size + size * size + size + hidden * size + hidden
    assert results["prompt, tp1"]["trained"] == P * hidden
    assert results["p-tuning, pp2"]["trained"] == P * hidden + encoder
    assert results["prefix, tp1"]["trained"] == 2 * layers * P * key
    assert results["adapter, tp1"]["trained"] == 2 * layers * (2 * hidden * bottleneck + bottleneck + hidden)


def test_process_groups_of_a_finished_case_are_gone(results: dict, folder: Path) -> None:
    assert_threads_end(folder)
