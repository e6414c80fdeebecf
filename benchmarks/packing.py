"""Compare packing algorithms: fill, spread of samples over packs, and time, on three length distributions.

    python benchmarks/packing.py                    # print the table
    python benchmarks/packing.py --million          # also with a million short samples
    python benchmarks/packing.py --plot packing_benchmark.png

CV is the standard deviation of samples per pack divided by the mean; 'max' is the maximum number of samples per pack
divided by the mean; 'bound' is a lower bound for the number of packs. Seconds are the minimum of three runs, on
one core. The two reference algorithms are straightforward implementations, not tuned.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mindspeed_llm.packing import min_packs, plan_packs

CAPACITY = 4096
Ints = npt.NDArray[np.int64]


def lognormal(samples: int, seed: int, median: float, shift: float, sigma: float, minimum: int) -> Ints:
    """Draw lengths from a lognormal distribution, limited to `minimum` ... CAPACITY; int64 [samples]."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median) - shift, sigma, samples)
    return np.clip(np.rint(drawn), minimum, CAPACITY).astype(np.int64)


def distributions(million: bool) -> dict[str, Ints]:
    """Return the length distributions by name: short instructions, long conversations and uniform lengths."""
    by_name = {
        "Alpaca-like, 52,002": lognormal(52_002, 0, 100, 0.32, 0.8, 8),
        "ShareGPT-like, 100,000": lognormal(100_000, 1, 900, 0.21, 1.2, 16),
        "uniform, 100,000": np.random.default_rng(2).integers(1, CAPACITY, 100_000, endpoint=True),
    }
    if million:
        by_name["Alpaca-like, 1,000,000"] = lognormal(1_000_000, 7, 100, 0.32, 0.8, 8)
    return by_name


def best_fit_decreasing(lengths: Ints, capacity: int) -> Ints:
    """Return the samples per pack of exact best-fit decreasing, int64 [packs].

    Samples are placed in order of decreasing length, each into the fullest pack with enough free slots. Open packs are
    kept in one linked list per number of free slots; an upward search finds the smallest sufficient number.
    """
    first = [-1] * (capacity + 1)  # the first pack with this many free slots
    after = [-1] * len(lengths)  # the next pack with the same number of free slots
    counts = [0] * len(lengths)
    packs = 0
    for length in (-np.sort(-lengths)).tolist():
        free = length
        while free <= capacity and first[free] == -1:
            free += 1
        if free > capacity:
            pack, packs, free = packs, packs + 1, capacity
        else:
            pack = first[free]
            first[free] = after[pack]
        counts[pack] += 1
        after[pack] = first[free - length]
        first[free - length] = pack
    return np.array(counts[:packs], np.int64)


def first_fit(lengths: Ints, capacity: int) -> Ints:
    """Return the samples per pack of first-fit, int64 [packs].

    Each sample is placed into the first pack with enough free slots. A binary tree with the maximum of free slots in
    each subtree finds that pack in logarithmic time.
    """
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    max_free = [capacity] * (2 * leaves)
    counts = [0] * len(lengths)
    for length in lengths.tolist():
        node = 1
        while node < leaves:
            node *= 2
            if max_free[node] < length:
                node += 1
        counts[node - leaves] += 1
        max_free[node] -= length
        while node > 1:
            node //= 2
            max_free[node] = max(max_free[2 * node], max_free[2 * node + 1])
    return np.array([count for count in counts if count], np.int64)


def first_fit_shuffled(lengths: Ints, capacity: int) -> Ints:
    """Return the samples per pack of first-fit on samples in random order, int64 [packs]."""
    return first_fit(lengths[np.random.default_rng(0).permutation(len(lengths))], capacity)


def this_project(lengths: Ints, capacity: int) -> Ints:
    """Return the samples per pack of the packer of this project in output order, int64 [packs]."""
    return plan_packs(lengths, capacity, 1234).samples_per_pack


PACKERS: dict[str, Callable[[Ints, int], Ints]] = {
    "best-fit decreasing": best_fit_decreasing,
    "first-fit, shuffled": first_fit_shuffled,
    "this project": this_project,
}


def measure(packer: Callable[[Ints, int], Ints], lengths: Ints) -> tuple[Ints, float]:
    """Return the samples per pack, int64 [packs], and the minimum seconds of three runs."""
    # The first call compiles the packer and is not timed.
    counts = packer(lengths, CAPACITY)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        packer(lengths, CAPACITY)
        seconds.append(time.perf_counter() - start)
    return counts, min(seconds)


def plot(results: dict[str, dict[str, Ints]], path: Path) -> None:
    """Plot samples per pack in the order of packs, which shows how well each packer mixes short and long samples."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(results), len(PACKERS), figsize=(12, 2.6 * len(results)), squeeze=False)
    for row, (data, by_packer) in zip(rows, results.items(), strict=True):
        top = max(counts.max() for counts in by_packer.values())
        for axis, (packer, counts) in zip(row, by_packer.items(), strict=True):
            axis.plot(counts, ".", markersize=1, rasterized=True)
            axis.set(ylim=(0, top * 1.05), title=f"{packer}\n{data}", xlabel="pack")
        row[0].set_ylabel("samples in the pack")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table and optionally draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="also pack a million short samples")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw samples per pack to this file")
    arguments = parser.parse_args()
    print(f"{'distribution':24}{'packer':22}{'packs':>8}{'bound':>8}{'fill %':>9}{'CV':>7}{'max':>7}{'seconds':>10}")
    results: dict[str, dict[str, Ints]] = {}
    for data, lengths in distributions(arguments.million).items():
        for packer, function in PACKERS.items():
            counts, seconds = measure(function, lengths)
            results.setdefault(data, {})[packer] = counts
            fill = 100 * lengths.sum() / (len(counts) * CAPACITY)
            print(
                f"{data:24}{packer:22}{len(counts):8}{min_packs(lengths, CAPACITY):8}{fill:9.3f}"
                f"{counts.std() / counts.mean():7.3f}{counts.max() / counts.mean():7.2f}{seconds:10.4f}"
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
