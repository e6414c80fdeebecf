"""Count the threads of a process that runs several jobs: those of a finished job's process groups must have ended."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import psutil


def threads_after_job() -> int:
    """Free the process groups of a finished job, and return the number of threads of this process.

    A group's threads end with the last reference to it, and the model holds references in cycles. The first collection
    frees the optimizer and with it autograd nodes, which the collector cannot look into; the second frees what their
    hooks held: the model. Collections after the next job then leave out the survivors, most of them imported modules:
    to look through these would take a second each time.
    """
    gc.collect()
    gc.collect()
    gc.freeze()
    return psutil.Process().num_threads()


def write_thread_counts(folder: Path, counts: list[int]) -> None:
    """Write one rank's counts, in the order of its jobs, to threads{RANK}.json."""
    (folder / f"threads{os.environ['RANK']}.json").write_text(json.dumps(counts))


def assert_threads_end(folder: Path) -> None:
    """Assert of every rank that it has at most twice as many threads after its last job as after its first."""
    files = sorted(folder.glob("threads*.json"))
    assert files
    for path in files:
        counts = json.loads(path.read_text())
        assert counts[-1] <= 2 * counts[0], f"{path.name}: {counts}"
