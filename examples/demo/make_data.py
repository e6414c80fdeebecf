"""Generate the instruction data of the demo.

    python examples/demo/make_data.py OUT.json [--samples 2400] [--seed 1234]

The rows are in Alpaca format (instruction, input, output). They come from about fifty families of small tasks: sums,
sorting, tables, grammar, an invented language, traces of code, stories. Each family has several wordings. The size of a
task is drawn from a lognormal distribution, so the lengths are skewed as in real instruction data: many short rows and
a few of several thousand characters. The same seed gives the same file. All rows are different.
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
MAX_TASK_SIZE = 90  # items


def size_of_task(rng: random.Random) -> int:
    """Draw the number of items of a task: the median is 6, and one in a hundred is above 60."""
    return max(2, min(MAX_TASK_SIZE, round(rng.lognormvariate(1.8, 1.0))))


def make_rows(samples: int, seed: int) -> list[Task]:
    """Generate `samples` different tasks from all families in turn, in shuffled order."""
    rng = random.Random(seed)
    families = list(FAMILIES.values())
    rows: dict[tuple[str, str], Task] = {}
    turn = 0
    while len(rows) < samples:
        task = families[turn % len(families)](rng, size_of_task(rng))
        # A repeated question is dropped and the next family continues. Retrying in the same family would not end once
        # a small family has no new questions left.
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
    temporary = arguments.out.with_name(f".{arguments.out.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps([row._asdict() for row in rows], ensure_ascii=False, indent=1) + "\n", "utf-8")
    temporary.replace(arguments.out)
    lengths = sorted(sum(map(len, row)) for row in rows)
    print(
        f"{arguments.out}: {len(rows):,} rows of {len(FAMILIES)} families; characters: minimum {lengths[0]}, "
        f"median {statistics.median(lengths):.0f}, mean {statistics.mean(lengths):.0f}, "
        f"99 % below {lengths[int(0.99 * (len(lengths) - 1))]:,}, maximum {lengths[-1]:,}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
