"""The packing algorithm: plan full packs with mixed samples from the lengths of all samples.

Best-fit decreasing fills packs almost perfectly, but it sorts: long samples share packs with long samples, short ones
with short ones (on instruction data some packs hold hundreds of samples and others eight). First fit on shuffled
samples mixes lengths, but leaves up to a few percent of the slots unused if samples are long. This algorithm combines
both. It draws samples in random order until a pack has little space left, then closes the pack by best fit from all
remaining samples. The draws are steered so that the remaining samples keep the mixture of the complete set until the
end. benchmarks/packing.py compares the algorithms.

    sample       0  1  2  3  4  5  6      capacity 8, 16 tokens: at least 2 packs
    length       5  1  2  3  3  1  1

    pack 0       3  3  3  0  0  0  0  0   samples 3 0       each slot shows the number of its sample
    pack 1       1  6  2  2  4  4  4  5   samples 1 6 2 4 5

    order        3  0  1  6  2  4  5
    pack_starts  0  2  7
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mindspeed_llm.packing.packing_loops import FillSettings, RemainingLengths, fill_packs

Int64s = npt.NDArray[np.int64]

FULL_ENOUGH = 0.000_01
"""A plan within this share of the minimum number of packs is accepted without trying fuller, less mixed plans."""

SORTED_IF_SAVES = 0.001
"""Plain best-fit decreasing is used if it saves more than this share of the packs."""


@dataclass(frozen=True)
class PackPlan:
    """The samples of each pack.

    Attributes:
        order: int64 [samples], the sample numbers, pack after pack; each sample once.
        pack_starts: int64 [packs + 1], the offset of each pack in `order`; the last is the number of samples.
    """

    order: Int64s
    pack_starts: Int64s

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(self.pack_starts) - 1

    def __getitem__(self, pack: int) -> Int64s:
        """Return the sample numbers of one pack: int64 [samples of the pack]."""
        if not 0 <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        return self.order[self.pack_starts[pack] : self.pack_starts[pack + 1]]

    def __iter__(self) -> Iterator[Int64s]:
        return (self[pack] for pack in range(len(self)))

    @property
    def samples_per_pack(self) -> Int64s:
        """Number of samples in each pack: int64 [packs]."""
        return np.diff(self.pack_starts)


class _Attempt(NamedTuple):
    """Settings of one run of `fill_packs`.

    Attributes:
        lead: share by which long samples are packed earlier than evenly, so that short samples remain for the last
            packs.
        tries: see `RemainingLengths.closing_length`.
    """

    lead: float
    tries: int


# From the most mixed plan to the fullest. On instruction data the first attempt already gives full packs.
_ATTEMPTS = (_Attempt(0.0, 1), _Attempt(0.05, 1), _Attempt(0.05, 64), _Attempt(0.1, 64))


def min_packs(lengths: npt.ArrayLike, capacity: int) -> int:
    """Return a lower bound for the number of packs of any plan.

    Args:
        lengths: integers [samples], tokens of each sample, 1 to `capacity`.
        capacity: slots of a pack.

    Returns:
        The number of packs that the tokens fill, or the number of samples above half the capacity if that is greater,
        because no two of those fit into one pack.

    Raises:
        ValueError: `capacity` is below 1, or a length is not an integer from 1 to `capacity`.
    """
    checked = _check_lengths(lengths, capacity)
    return max(-(-int(checked.sum(dtype=np.int64)) // capacity), int(np.count_nonzero(checked > capacity // 2)))


def plan_packs(lengths: npt.ArrayLike, capacity: int, seed: int) -> PackPlan:
    """Plan the packs of a set of samples.

    Every sample is in exactly one pack, no sample is split, and no pack exceeds `capacity`. A sample of exactly
    `capacity` tokens is a pack. The order of packs and the order of samples in a pack do not depend on lengths. The
    function is pure: the same lengths, capacity and seed give the same plan on every machine.

    Args:
        lengths: integers [samples], tokens of each sample, 1 to `capacity`.
        capacity: slots of a pack.
        seed: seed of the random number generator, 0 or more.

    Raises:
        ValueError: a length is not an integer from 1 to `capacity` (the caller truncates or drops long samples before),
            `capacity` is below 1, or `seed` is negative.
    """
    checked = _check_lengths(lengths, capacity)
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if checked.size == 0:
        return PackPlan(np.zeros(0, np.int64), np.zeros(1, np.int64))
    random = np.random.Generator(np.random.PCG64(seed))
    # The smaller type halves the memory of the largest arrays.
    index = np.int32 if checked.size < 2**31 else np.int64
    shuffled = random.permutation(np.arange(checked.size, dtype=index))
    stream = checked[shuffled]
    counts = np.bincount(stream, minlength=capacity + 1)
    planned, starts = _best_plan(stream, counts, capacity)
    return _place_samples(shuffled, stream, planned, starts, random)


def _check_lengths(lengths: npt.ArrayLike, capacity: int) -> npt.NDArray[Any]:
    """Return `lengths` as an integer array [samples] after checking them."""
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; it must be 1 or more")
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be integers in one dimension, not {array.dtype} in {array.ndim} dimensions")
    if array.size and (array.min() < 1 or array.max() > capacity):
        wrong = int(np.flatnonzero((array < 1) | (array > capacity))[0])
        raise ValueError(f"sample {wrong} has length {array[wrong]}; lengths must be 1 to {capacity} (the capacity)")
    return array.astype(np.int32 if capacity < 2**31 else np.int64, copy=False)


def _best_plan(stream: npt.NDArray[Any], counts: Int64s, capacity: int) -> tuple[npt.NDArray[Any], Int64s]:
    """Return the plan of lengths with the fewest packs.

    Among plans with equal numbers of packs it prefers those without a pack above twice the mean number of samples, then
    the one with the lowest standard deviation of samples per pack.

    Args:
        stream: lengths in random order [samples].
        counts: number of samples of each length [capacity + 1].
        capacity: slots of a pack.

    Returns:
        The lengths [samples], pack after pack, and the offset of each pack in them [packs + 1].
    """
    minimum = min_packs(stream, capacity)
    best, best_starts, best_score = stream, np.zeros(0, np.int64), (stream.size + 1, 0.0, 0.0)
    for attempt in _ATTEMPTS:
        planned, starts = _fill_packs(stream, counts, capacity, attempt)
        per_pack = np.diff(starts)
        score = (len(per_pack), max(2.0, per_pack.max() / per_pack.mean()), float(per_pack.std()))
        if score < best_score:
            best, best_starts, best_score = planned, starts, score
        # The later attempts mix less and could hardly save a pack.
        if best_score[0] <= minimum * (1 + FULL_ENOUGH):
            return best, best_starts
    # Best-fit decreasing cannot save enough if the plan is this close to the minimum.
    if best_score[0] > minimum * (1 + SORTED_IF_SAVES):
        descending = np.repeat(np.arange(capacity, -1, -1, dtype=stream.dtype), counts[::-1])
        planned, starts = _fill_packs(descending, counts, capacity, None)
        if len(starts) - 1 < best_score[0] * (1 - SORTED_IF_SAVES):
            return planned, starts
    return best, best_starts


def _fill_packs(
    stream: npt.NDArray[Any], counts: Int64s, capacity: int, attempt: _Attempt | None
) -> tuple[npt.NDArray[Any], Int64s]:
    """Run `fill_packs` with the settings of `attempt`; None: as best fit on a descending stream."""
    is_large = stream > capacity // 2
    large, small = stream[is_large], stream[~is_large]
    minimum = max(-(-int(stream.sum(dtype=np.int64)) // capacity), large.size)
    if attempt is None:
        # `draw_while` = capacity: nothing is drawn at random, best fit alone fills every pack.
        settings = FillSettings(0, capacity, capacity, 0.0, 1)
    else:
        mean = -(-int(small.sum(dtype=np.int64)) // small.size) if small.size else 1
        # A pack that closes at one mean length of space tends to hold more samples than one that closes at three.
        pace = (1 - attempt.lead) * stream.size / int(stream.sum(dtype=np.int64))
        settings = FillSettings(int(minimum * (1 - 2 * attempt.lead)), 3 * mean, mean, pace, attempt.tries)
    return fill_packs(large, small, RemainingLengths(counts), capacity, settings)


def _place_samples(
    shuffled: npt.NDArray[Any],
    stream: npt.NDArray[Any],
    planned: npt.NDArray[Any],
    starts: Int64s,
    random: np.random.Generator,
) -> PackPlan:
    """Replace the lengths of a plan by samples of these lengths; shuffle the packs, and the samples in each pack.

    Args:
        shuffled: sample numbers in random order [samples].
        stream: their lengths [samples].
        planned: lengths of the plan, pack after pack [samples].
        starts: offset of each pack in `planned` [packs + 1].
        random: generator of the random order.
    """
    packs = len(starts) - 1
    pack_order = random.permutation(packs)
    draws = random.integers(0, 2**32, stream.size, dtype=np.uint32)
    sizes = np.diff(starts)[pack_order]
    order_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    first = order_starts[:-1]
    # Position in `planned` of each sample of the shuffled packs.
    position = np.repeat(starts[pack_order] - first, sizes) + np.arange(stream.size)
    # The first place for a length gets the first of the shuffled samples of this length, and so on.
    samples = np.empty(stream.size, np.int64)
    samples[np.argsort(planned[position], kind="stable")] = shuffled[np.argsort(stream, kind="stable")]
    draws = draws[position].astype(np.int64)
    # Fisher-Yates shuffle, inside out, of all packs at once: the sample n of a pack takes a random place among the
    # samples 0 … n, and the one in that place moves to place n. Product and shift scale a draw to [0, n].
    order = np.empty(stream.size, np.int64)
    by_size = np.argsort(-sizes, kind="stable")
    for number in range(int(sizes.max())):
        last = first[by_size[: np.count_nonzero(sizes > number)]] + number
        chosen = last - number + ((draws[last] * (number + 1)) >> 32)
        order[last] = order[chosen]
        order[chosen] = samples[last]
    return PackPlan(order, order_starts)
