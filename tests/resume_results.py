"""Results of the four ranks of a resume program: the samples they read, their state and the figures of their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from four_ranks import RANKS
from tiny_runs import train_records

FIGURES = ("loss", "grad_norm", "learning_rate", "consumed_samples", "trained_tokens", "tokens")


def shares_of(folder: Path, course: str) -> list[list[dict | None]]:
    """Return the result of each rank for each part of a course, indexed [part][rank]."""
    by_rank = [json.loads((folder / f"results{rank}.json").read_text())[course] for rank in range(RANKS)]
    return [list(part) for part in zip(*by_rank, strict=True)]


def sample_ids(folder: Path, course: str) -> list[list]:
    """Return the samples of every step of a course in data order, combined from all ranks."""
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


def figures(folder: Path, courses: list[str], course: str) -> dict[int, dict]:
    """Return the last figures of every iteration of a course; `courses` lists all courses of the program in order."""
    return train_records(folder / f"course_{courses.index(course)}" / "run")


def assert_close(expected: dict[int, dict], found: dict[int, dict]) -> None:
    """Assert that the figures of two courses on different layouts agree within 1e-5."""
    assert list(found) == list(expected)
    for key in FIGURES:
        own, true = ([records[i][key] for i in records] for records in (found, expected))
        assert own == pytest.approx(true, rel=1e-5), key


def changed_state(folder: Path, straight: str, stopped: str) -> set[str]:
    """Return the names of state that differs after two courses on one layout, such as 'rank 0: weight 0 …'."""
    [whole], last = shares_of(folder, straight), shares_of(folder, stopped)[-1]
    changed = set()
    for rank, (expected, found) in enumerate(zip(whole, last, strict=True)):
        if expected is None or found is None:
            assert expected is found, "the same ranks take part"
            continue
        assert found["state"].keys() == expected["state"].keys()
        changed |= {f"rank {rank}: {key}" for key, value in expected["state"].items() if found["state"][key] != value}
    return changed
