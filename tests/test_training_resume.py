"""A run that is stopped and started again is the run never stopped: to the bit on its layout, closely on another one.

Four processes take the courses of resume_program.py in turn; each test below looks at one of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from four_ranks import RANKS, run_four_ranks
from resume_program import COURSES, EXACT, ITERATIONS, PACKS
from thread_counts import assert_threads_end
from tiny_runs import train_records, write_files

FIGURES = ("loss", "grad_norm", "learning_rate", "consumed_samples", "trained_tokens", "tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the ranks have left their runs and what they saw."""
    folder = tmp_path_factory.mktemp("resume")
    write_files(folder / "data", count=PACKS)
    results = [folder / f"results{rank}.json" for rank in range(RANKS)]
    run_four_ranks("resume_program", folder, results)
    return folder


def shares_of(folder: Path, course: str) -> list[list[dict | None]]:
    """[part][rank]: what each rank saw of each part of a course."""
    by_rank = [json.loads((folder / f"results{rank}.json").read_text())[course] for rank in range(RANKS)]
    return [list(part) for part in zip(*by_rank, strict=True)]


def sample_ids(folder: Path, course: str) -> list[list]:
    """The samples of every step of a course in the order of the data, put together from what the ranks read."""
    order = []
    for part in shares_of(folder, course):
        own = [share for share in part if share is not None]
        for step in range(len(own[0]["steps"])):
            places: dict[tuple[int, int], list] = {}
            for share in own:
                for micro, ids in enumerate(share["steps"][step]):
                    known = places.setdefault((micro, share["replica"]), ids)
                    assert known == ids, "ranks of one replica read the same"
            order.append([one for place in sorted(places) for one in places[place]])
    return order


def figures(folder: Path, course: str) -> dict[int, dict]:
    return train_records(folder / f"course_{list(COURSES).index(course)}" / "run")


def test_on_other_layouts_the_samples_are_the_same_and_the_losses_close(folder):
    straight, chain = "tp2, never stopped", "tp2, then pp2, then dp4"
    ids = sample_ids(folder, straight)
    assert sample_ids(folder, chain) == ids
    assert len(ids) == ITERATIONS and all(len(step) == 4 for step in ids)
    numbers = [number for step in ids for _, number in step]
    assert sorted(numbers[:PACKS]) == sorted(numbers[PACKS:]) == list(range(PACKS)), "two epochs"
    assert numbers[:PACKS] != numbers[PACKS:]
    expected, found = figures(folder, straight), figures(folder, chain)
    assert list(found) == list(range(1, ITERATIONS + 1))
    for key in FIGURES:
        own, true = ([records[i][key] for i in records] for records in (found, expected))
        assert own == pytest.approx(true, rel=1e-5), key
    said = (folder / "rank0.log").read_text()
    assert said.count("; the layout is another one, so random states start anew") == 2
    for part, done in zip(shares_of(folder, chain), (3, 3, 3), strict=True):
        assert len(part[0]["steps"]) == done


@pytest.mark.parametrize("name", EXACT)
def test_on_its_own_layout_every_bit_is_the_same(folder, name):
    """Weights, both moments and main weights of the optimizer, schedule, random states, figures and samples."""
    straight, stopped = f"{name}, never stopped", f"{name}, stopped"
    assert sample_ids(folder, stopped) == sample_ids(folder, straight)
    [whole], parts = shares_of(folder, straight), shares_of(folder, stopped)
    assert [len(part[0]["steps"]) for part in parts] == [3, 3, 3]
    for rank in range(RANKS):
        expected, found = whole[rank]["state"], parts[-1][rank]["state"]
        assert {key for key in expected if found.get(key) != expected[key]} == set()
        assert found.keys() == expected.keys()
        for kind in ("weight", "optimizer", "random states", "schedule"):
            changed = [key for key in found if key.startswith(kind) and found[key] != parts[0][rank]["state"][key]]
            assert changed, f"the {kind} of a run do not stand still, so that they can tell"
    expected, found = figures(folder, straight), figures(folder, stopped)
    for key in FIGURES:
        assert [found[i][key] for i in found] == [expected[i][key] for i in expected], key


def test_process_groups_of_a_finished_part_are_gone(folder):
    assert_threads_end(folder)
