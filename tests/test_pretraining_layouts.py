"""Pretraining on blocks of documents gives, on every layout, what a plain float64 model gives on the same tokens."""

from __future__ import annotations

import json

import pytest
from four_ranks import run_four_ranks
from pretraining_program import CASES, LONG_CASES, STEPS, S
from thread_counts import assert_threads_end

BOUND = 1e-5
GRADIENT_BOUND = 1e-4  # of each tensor, relative to its norm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretraining")


@pytest.fixture(scope="module")
def results(folder):
    """Errors of every case against the reference."""
    run_four_ranks("pretraining_program", folder, [folder / "results.json"], "short", world_size=2)
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", CASES)
def test_a_layout_equals_the_reference(results, name):
    assert_equal_to_the_reference(results[name])


def assert_equal_to_the_reference(own):
    assert len(own["gradients"]) == STEPS
    assert own["loss"] <= BOUND and own["norm"] <= BOUND
    assert max(max(step.values()) for step in own["gradients"]) <= GRADIENT_BOUND
    assert max(own["weights"].values()) <= BOUND


@pytest.mark.parametrize("name", CASES)
def test_held_out_loss_of_a_source_equals_the_reference(results, name):
    assert_held_out_equal(results[name])


def assert_held_out_equal(own):
    assert own["held out"] <= BOUND and own["held out mean"] <= BOUND
    other, tokens = own["held out tokens"]
    assert other == 0 and tokens == 8 * S


@pytest.mark.long
def test_layouts_of_four_ranks_equal_the_reference(tmp_path):
    run_four_ranks("pretraining_program", tmp_path, [tmp_path / "results.json"], "long", limit_seconds=900)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found.keys() == LONG_CASES.keys()
    for own in found.values():
        assert_equal_to_the_reference(own)
        assert_held_out_equal(own)


def test_separated_documents_differ_from_one_causal_sequence(results):
    separated, whole = results["one rank"]["losses"], results["one rank, one causal sequence"]["losses"]
    assert all(abs(one - other) > 1e-4 for one, other in zip(separated, whole, strict=True))


def test_process_groups_of_a_finished_case_are_gone(results, folder):
    assert_threads_end(folder)
