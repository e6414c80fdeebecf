"""A run that is stopped and started again is the run never stopped: to the bit on its layout, closely on another one.

Four processes take the courses of resume_program.py in turn; each test below looks at one of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from four_ranks import RANKS, run_four_ranks
from resume_program import COURSES, EXACT, ITERATIONS, PACKS
from resume_results import FIGURES, assert_close, changed_state, figures, sample_ids, shares_of
from thread_counts import assert_threads_end
from tiny_runs import write_files

# A course on one layout → one on several, and how many iterations each of its parts does.
CHAINS = {
    "tp2, never stopped": ("tp2, then uneven pp2, then dp4", [3, 3, 3]),
    "tied pp2 dp2, never stopped": ("tied pp2 dp2, then dp2", [6, 3]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the ranks have left their runs and what they saw."""
    folder = tmp_path_factory.mktemp("resume")
    write_files(folder / "data", count=PACKS)
    results = [folder / f"results{rank}.json" for rank in range(RANKS)]
    run_four_ranks("resume_program", folder, results)
    return folder


@pytest.mark.parametrize("straight", CHAINS)
def test_resuming_on_another_layout_keeps_samples_and_close_losses(folder, straight):
    chain, done = CHAINS[straight]
    ids = sample_ids(folder, straight)
    assert sample_ids(folder, chain) == ids
    assert len(ids) == ITERATIONS and all(len(step) == 4 for step in ids)
    numbers = [number for step in ids for _, number in step]
    assert sorted(numbers[:PACKS]) == sorted(numbers[PACKS:]) == list(range(PACKS)), "two epochs"
    assert numbers[:PACKS] != numbers[PACKS:]
    assert_close(figures(folder, list(COURSES), straight), figures(folder, list(COURSES), chain))
    assert [len(part[0]["steps"]) for part in shares_of(folder, chain)] == done


def test_rng_states_are_reset_on_another_layout_with_a_notice(folder):
    said = (folder / "rank0.log").read_text()
    changes = sum(len(done) - 1 for _, done in CHAINS.values())
    assert said.count("; the layout has changed, so the RNG states are not restored") == changes


@pytest.mark.parametrize("course", [course for course in COURSES if "several buckets" in course or "tied" in course])
def test_buckets_end_in_padding_before_another_bucket(folder, course):
    """Otherwise the courses above could not tell whether the padding between buckets is dealt with."""
    for part in shares_of(folder, course):
        assert any(share["padded_buckets"] for share in part if share is not None)


@pytest.mark.parametrize("name", EXACT)
def test_resuming_on_the_same_layout_is_bit_exact(folder, name):
    """Weights, both moments and main weights of the optimizer, schedule, random states, figures and samples."""
    straight, stopped = f"{name}, never stopped", f"{name}, stopped"
    assert sample_ids(folder, stopped) == sample_ids(folder, straight)
    parts = shares_of(folder, stopped)
    assert [len(part[0]["steps"]) for part in parts] == [3, 3, 3]
    assert changed_state(folder, straight, stopped) == set()
    for rank in range(RANKS):
        found = parts[-1][rank]["state"]
        for kind in ("weight", "optimizer", "random states", "schedule"):
            changed = [key for key in found if key.startswith(kind) and found[key] != parts[0][rank]["state"][key]]
            assert changed, f"the {kind} of a run do not stand still, so that they can tell"
    expected, found = figures(folder, list(COURSES), straight), figures(folder, list(COURSES), stopped)
    for key in FIGURES:
        assert [found[i][key] for i in found] == [expected[i][key] for i in expected], key


def test_process_groups_of_a_finished_part_are_gone(folder):
    assert_threads_end(folder)
