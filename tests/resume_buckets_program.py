"""One rank of the long test of resuming with several buckets: every combination of layout, overlap and precision.

Started four times for each group of layouts by test_training_resume_buckets.py, with a folder of the group's name.
A combination is a run that is never stopped, the same run stopped once, and in float32 one resumed on another layout.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from resume_program import INTERLEAVED, ODD_HALVES, ODD_ROWS, PP, TP, Part, take_part
from thread_counts import threads_after_job, write_thread_counts

from mindspeed_llm.devices import apply_patches

# Group → ranks that share a model, and their flags.
GROUPS = {
    "pp1": (1, ODD_ROWS),
    "pp2": (2, f"{PP} 2 {ODD_ROWS}"),
    "interleaved": (2, f"{INTERLEAVED} {ODD_ROWS}"),
    "tp2": (2, f"{TP} 2 --sequence-parallel {ODD_HALVES}"),
}
# Three replicas need buckets of a multiple of lcm(3, 128), and a global batch that they divide.
GLOBAL_BATCH = {1: 4, 2: 4, 3: 6}
OVERLAPS = {
    "no overlap": "",
    "overlapping reduction": "--overlap-grad-reduce --ddp-bucket-size 9000",
    "both overlaps": "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 500",
}
STOP = 4


@dataclass(frozen=True)
class Combination:
    """One way to train.

    Attributes:
        part: the whole run.
        replicas: data-parallel ranks.
        several: whether a buffer has several buckets: the reduction overlaps, or the embedding of two stages is one.
        comparable: whether another layout gives the same figures within 1e-5.
    """

    part: Part
    replicas: int
    several: bool
    comparable: bool


def combinations(group: str) -> dict[str, Combination]:
    """Name → combination, for all that fit on four ranks."""
    ranks, layout = GROUPS[group]
    found = {}
    for replicas, tied, (overlap, words), precision in itertools.product(
        GLOBAL_BATCH, (False, True), OVERLAPS.items(), ("float32", "bf16")
    ):
        if ranks * replicas > 4 or (precision == "bf16" and overlap == "overlapping reduction"):
            continue
        flags = f"{layout} --use-distributed-optimizer --global-batch-size {GLOBAL_BATCH[replicas]} {words}"
        part = Part(ranks * replicas, f"{flags} {'--bf16' if precision == 'bf16' else ''}", tied=tied)
        several = bool(words) or (tied and PP in layout)
        name = f"{group} dp{replicas}, {'tied' if tied else 'untied'}, {overlap}, {precision}"
        found[name] = Combination(part, replicas, several, precision == "float32" and group != "tp2")
    return found


def courses_of(group: str) -> dict[str, list[Part]]:
    """Name of a combination with an ending → course."""
    courses = {}
    for name, combination in combinations(group).items():
        part = combination.part
        courses[f"{name}, never stopped"] = [part]
        courses[f"{name}, stopped"] = [replace(part, until=STOP), part]
        if combination.comparable:
            batch = f"--global-batch-size {GLOBAL_BATCH[combination.replicas]}"
            other = f"{ODD_ROWS} --use-distributed-optimizer --overlap-grad-reduce --ddp-bucket-size 20000 {batch}"
            courses[f"{name}, then dp2"] = [replace(part, until=STOP), Part(2, other, tied=part.tied)]
    return courses


def main(folder: Path) -> None:
    apply_patches("cpu")
    torch.set_num_threads(1)
    results: dict[str, list] = {}
    threads: list[int] = []
    for number, (name, parts) in enumerate(courses_of(folder.name).items()):
        for at, part in enumerate(parts):
            share = take_part(part, str(folder / "data"), folder / f"course_{number}", folder / f"store_{number}_{at}")
            results.setdefault(name, []).append(share)
            if share is not None:
                threads.append(threads_after_job())
    write_thread_counts(folder, threads)
    (folder / f"results{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
