"""Run a test program on four ranks and make sure that all of them end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS

RANKS = 4
GRACE_SECONDS = 10


def run_four_ranks(
    program: str,
    folder: Path,
    results: list[Path],
    *words: str,
    limit_seconds: float = HANG_SECONDS,
    world_size: int = RANKS,
) -> None:
    """Run tests/PROGRAM.py FOLDER WORDS as four processes, or `world_size`, with RANK and WORLD_SIZE set.

    A rank that ends with an error ends the others soon after: they would wait for it until the limit.

    Args:
        program: name of the file, without .py.
        folder: what it works in; the ranks' logs go there too.
        words: further arguments of the program.
        limit_seconds: time limit.
        world_size: number of processes.
        results: files that must be there afterwards; else the test fails with the end of every log.
    """
    command = [sys.executable, str(Path(__file__).with_name(f"{program}.py")), str(folder), *words]
    environment = {**os.environ, "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    ranks = [
        subprocess.Popen(
            command, env={**environment, "RANK": str(rank)}, stdout=log.open("w"), stderr=subprocess.STDOUT
        )
        for rank, log in enumerate(logs)
    ]
    end = time.monotonic() + limit_seconds
    try:
        while time.monotonic() < end and any(rank.poll() is None for rank in ranks):
            if any(rank.poll() for rank in ranks):
                end = min(end, time.monotonic() + GRACE_SECONDS)
            time.sleep(0.2)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    if not all(path.exists() for path in results):
        pytest.fail("\n\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in logs))
