"""Resuming with several buckets of the distributed optimizer: the full product of layouts, overlaps and precisions.

test_training_resume.py has a few of them in the ordinary suite.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from four_ranks import RANKS, run_four_ranks
from resume_buckets_program import GROUPS, combinations, courses_of
from resume_program import PACKS
from resume_results import FIGURES, assert_close, changed_state, figures, sample_ids, shares_of
from thread_counts import assert_threads_end
from tiny_runs import write_files

pytestmark = pytest.mark.long

# One process of each rank trains about a hundred runs.
LIMIT_SECONDS = 3600


@pytest.fixture(scope="module", params=GROUPS)
def folder(request, tmp_path_factory) -> Path:
    """Where the ranks have left the runs of a group and what they saw."""
    folder = tmp_path_factory.mktemp("buckets") / request.param
    folder.mkdir()
    write_files(folder / "data", count=PACKS)
    results = [folder / f"results{rank}.json" for rank in range(RANKS)]
    run_four_ranks("resume_buckets_program", folder, results, limit_seconds=LIMIT_SECONDS)
    return folder


def test_resuming_on_the_same_layout_is_bit_exact(folder):
    courses = list(courses_of(folder.name))
    for name in combinations(folder.name):
        straight, stopped = f"{name}, never stopped", f"{name}, stopped"
        assert sample_ids(folder, stopped) == sample_ids(folder, straight), name
        assert changed_state(folder, straight, stopped) == set(), name
        expected, found = figures(folder, courses, straight), figures(folder, courses, stopped)
        for key in FIGURES:
            assert [found[i][key] for i in found] == [expected[i][key] for i in expected], (name, key)


def test_resuming_on_another_layout_gives_close_figures(folder):
    courses = list(courses_of(folder.name))
    for name, combination in combinations(folder.name).items():
        if not combination.comparable:
            continue
        straight, changed = f"{name}, never stopped", f"{name}, then dp2"
        assert sample_ids(folder, changed) == sample_ids(folder, straight), name
        assert_close(figures(folder, courses, straight), figures(folder, courses, changed))


def test_buckets_end_in_padding_before_another_bucket(folder):
    """Otherwise the runs could not tell whether the padding between buckets is dealt with."""
    for name, combination in combinations(folder.name).items():
        [part] = shares_of(folder, f"{name}, never stopped")
        assert any(share["padded_buckets"] for share in part if share is not None) == combination.several, name


def test_process_groups_of_a_finished_part_are_gone(folder):
    assert_threads_end(folder)
