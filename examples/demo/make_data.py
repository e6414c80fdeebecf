"""Write the demo's instruction data: python examples/demo/make_data.py OUT.json [--samples 2400] [--seed 1234]

Alpaca-style rows (instruction, input, output) from some fifty families of small tasks – sums, sorting, tables,
grammar, a made-up language, traces of code, stories – each in several wordings. How much a task is about is drawn from
a lognormal distribution, so the lengths are skewed as in real instruction data: many short rows, a few of several
thousand characters. The same seed gives the same file. No two rows are alike.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from pathlib import Path

import tasks_numbers
import tasks_records
import tasks_words
from tasks import FAMILIES, Task

# Families register themselves when their module is imported.
assert all((tasks_numbers, tasks_records, tasks_words))
LARGEST = 90


def size_of_task(rng: random.Random) -> int:
    """The number of items a task is about: the median is 6, one in a hundred is above 60."""
    return max(2, min(LARGEST, round(rng.lognormvariate(1.8, 1.0))))


def make_rows(samples: int, seed: int) -> list[Task]:
    """`samples` different tasks, the families in turn, then shuffled."""
    rng = random.Random(seed)
    families = list(FAMILIES.values())
    rows: dict[tuple[str, str], Task] = {}
    turn = 0
    while len(rows) < samples:
        task = families[turn % len(families)](rng, size_of_task(rng))
        # A repeated question is drawn again by the next family; the turn goes on, so a small family cannot stall.
        rows.setdefault((task.instruction, task.input), task)
        turn += 1
    shuffled = list(rows.values())
    rng.shuffle(shuffled)
    return shuffled


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--samples", type=int, default=2400, help="rows (default 2400)")
    parser.add_argument("--seed", type=int, default=1234, help="the same seed gives the same file (default 1234)")
    arguments = parser.parse_args()
    if arguments.samples < 1:
        parser.error("--samples must be 1 or more")
    rows = make_rows(arguments.samples, arguments.seed)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    beside = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}.part")
    beside.write_text(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=1) + "\n", "utf-8")
    beside.replace(arguments.out)
    lengths = sorted(sum(map(len, row)) for row in rows)
    print(
        f"{arguments.out}: {len(rows):,} rows of {len(FAMILIES)} families; characters: least {lengths[0]}, "
        f"median {statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}, "
        f"99 % below {lengths[int(0.99 * (len(lengths) - 1))]:,}, most {lengths[-1]:,}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
