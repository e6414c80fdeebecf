"""Packers compared: fill, how evenly samples are spread over packs, and time, on three length distributions.

    python benchmarks/packing.py                    # the table
    python benchmarks/packing.py --million          # with a million short samples as well
    python benchmarks/packing.py --plot packing_benchmark.png

CV is the standard deviation of samples per pack over their mean; 'most' is the fullest pack, in samples, over the
mean. Seconds are the best of three, after compilation, on one core; the two references are plain, not tuned.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspeed_llm.packing import min_packs, plan_packs

CAPACITY = 4096
Ints = npt.NDArray[np.int64]


def lognormal(samples: int, seed: int, middle: float, shift: float, spread: float, least: int) -> Ints:
    """Skewed lengths, cut to `least` ... CAPACITY."""
    drawn = np.random.default_rng(seed).lognormal(np.log(middle) - shift, spread, samples)
    return np.clip(np.rint(drawn), least, CAPACITY).astype(np.int64)


def distributions(million: bool) -> dict[str, Ints]:
    """Short instructions, long conversations, and uniform lengths."""
    found = {
        "Alpaca-like, 52,002": lognormal(52_002, 0, 100, 0.32, 0.8, 8),
        "ShareGPT-like, 100,000": lognormal(100_000, 1, 900, 0.21, 1.2, 16),
        "uniform, 100,000": np.random.default_rng(2).integers(1, CAPACITY, 100_000, endpoint=True),
    }
    if million:
        found["Alpaca-like, 1,000,000"] = lognormal(1_000_000, 7, 100, 0.32, 0.8, 8)
    return found


@numba.njit(cache=True)
def best_fit_decreasing(lengths: Any, capacity: int) -> Any:
    """Samples in each pack of exact best-fit decreasing: the fullest pack that has room takes the next longest.

    Open packs stand in one list for each amount of room; a search upwards finds the least room that is enough.
    """
    first = np.full(capacity + 1, -1, np.int64)  # the first pack with this much room
    after = np.full(len(lengths), -1, np.int64)  # the next pack with the same room
    held = np.zeros(len(lengths), np.int64)
    packs = 0
    for length in -np.sort(-lengths):
        room = length
        while room <= capacity and first[room] == -1:
            room += 1
        if room > capacity:
            pack, packs, room = packs, packs + 1, capacity
        else:
            pack = first[room]
            first[room] = after[pack]
        held[pack] += 1
        after[pack] = first[room - length]
        first[room - length] = pack
    return held[:packs]


@numba.njit(cache=True)
def first_fit(lengths: Any, capacity: int) -> Any:
    """Samples in each pack of first-fit: the earliest pack with room takes the next sample (a tree of rooms)."""
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    most_room = np.full(2 * leaves, capacity, np.int64)
    held = np.zeros(len(lengths), np.int64)
    for length in lengths:
        node = 1
        while node < leaves:
            node *= 2
            if most_room[node] < length:
                node += 1
        held[node - leaves] += 1
        most_room[node] -= length
        while node > 1:
            node //= 2
            most_room[node] = max(most_room[2 * node], most_room[2 * node + 1])
    return held[: np.count_nonzero(held)]


def first_fit_shuffled(lengths: Ints, capacity: int) -> Ints:
    """First-fit on samples in random order."""
    return first_fit(lengths[np.random.default_rng(0).permutation(len(lengths))], capacity)


def ours(lengths: Ints, capacity: int) -> Ints:
    """Samples in each pack of this project's packer, in the order that it writes them."""
    return plan_packs(lengths, capacity, 1234).samples_per_pack


PACKERS: dict[str, Callable[[Ints, int], Ints]] = {
    "best-fit decreasing": best_fit_decreasing,
    "first-fit, shuffled": first_fit_shuffled,
    "this project": ours,
}


def measured(packer: Callable[[Ints, int], Ints], lengths: Ints) -> tuple[Ints, float]:
    """Samples in each pack, and seconds."""
    held = packer(lengths, CAPACITY)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        packer(lengths, CAPACITY)
        seconds.append(time.perf_counter() - start)
    return held, min(seconds)


def plot(results: dict[str, dict[str, Ints]], path: Path) -> None:
    """Samples per pack in the order of packs: how mixed each packer's output is."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(results), len(PACKERS), figsize=(12, 2.6 * len(results)), squeeze=False)
    for row, (data, by_packer) in zip(rows, results.items(), strict=True):
        top = max(held.max() for held in by_packer.values())
        for axis, (packer, held) in zip(row, by_packer.items(), strict=True):
            axis.plot(held, ".", markersize=1, rasterized=True)
            axis.set(ylim=(0, top * 1.05), title=f"{packer}\n{data}", xlabel="pack")
        row[0].set_ylabel("samples in the pack")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table; draw the picture if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="also a million short samples")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw samples per pack to this file")
    arguments = parser.parse_args()
    print(f"{'distribution':24}{'packer':22}{'packs':>8}{'least':>8}{'fill %':>9}{'CV':>7}{'most':>7}{'seconds':>10}")
    results: dict[str, dict[str, Ints]] = {}
    for data, lengths in distributions(arguments.million).items():
        for packer, function in PACKERS.items():
            held, seconds = measured(function, lengths)
            results.setdefault(data, {})[packer] = held
            fill = 100 * lengths.sum() / (len(held) * CAPACITY)
            print(
                f"{data:24}{packer:22}{len(held):8}{min_packs(lengths, CAPACITY):8}{fill:9.3f}"
                f"{held.std() / held.mean():7.3f}{held.max() / held.mean():7.2f}{seconds:10.4f}"
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
