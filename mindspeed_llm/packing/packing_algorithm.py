"""From the lengths of a whole set of samples to a plan: full packs whose samples are mixed.

Best-fit decreasing fills packs almost perfectly, but sorts: it puts the long samples together, and the short ones
(on instruction data: hundreds in one pack beside packs of eight). First-fit on shuffled samples mixes, but loses
the last percents where samples are long. This packer has both: it draws samples in random order until a pack has
little room left, and closes the pack by best fit from everything that is left; and it steers the draws, so that
what is left keeps the mixture of the whole set until the end. The figures are in benchmarks/packing.py.

    capacity 8, lengths 5 1 2 3 3 1 1      a plan: | 3 1 1 3 | 5 2 1 |      (order of packs and inside them: shuffled)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

FULL_ENOUGH = 0.000_01
"""A plan within this share of the least number of packs is taken as it is, before fuller and less mixed ones."""

SORTED_IF_SAVES = 0.001
"""Packs made by plain best-fit decreasing are taken where they save more than this share of all packs."""


@dataclass(frozen=True)
class PackPlan:
    """Which samples make up each pack.

    Attributes:
        order: sample numbers [samples], pack after pack; each sample once.
        pack_starts: where each pack starts in `order` [packs + 1]; the last is the number of samples.
    """

    order: Int64s
    pack_starts: Int64s

    def __len__(self) -> int:
        """The number of packs."""
        return len(self.pack_starts) - 1

    def __getitem__(self, pack: int) -> Int64s:
        """The numbers of the samples of one pack."""
        if not 0 <= pack < len(self):
            raise IndexError(f"pack {pack} of {len(self)}")
        return self.order[self.pack_starts[pack] : self.pack_starts[pack + 1]]

    def __iter__(self) -> Iterator[Int64s]:
        return (self[pack] for pack in range(len(self)))

    @property
    def samples_per_pack(self) -> Int64s:
        """The number of samples in each pack [packs]."""
        return np.diff(self.pack_starts)


class _Attempt(NamedTuple):
    """One way to run `kernel.fill_packs`.

    lead: by how much long samples are packed ahead of their share, so that short ones are left to fill the last packs.
    tries: see `kernel.closing_length`.
    """

    lead: float
    tries: int


# From the most mixed to the fullest; on instruction data the first is full already.
_ATTEMPTS = (_Attempt(0.0, 1), _Attempt(0.05, 1), _Attempt(0.05, 64), _Attempt(0.1, 64))


def min_packs(lengths: npt.ArrayLike, capacity: int) -> int:
    """A number of packs that no plan can go below: total length, and samples of which no two fit together."""
    checked = _checked(lengths, capacity)
    return max(-(-int(checked.sum(dtype=np.int64)) // capacity), int(np.count_nonzero(checked > capacity // 2)))


def plan_packs(lengths: npt.ArrayLike, capacity: int, seed: int) -> PackPlan:
    """Plan the packs of a whole set of samples: none split, none left out, no pack above `capacity`.

    A pure function: the same lengths, capacity and seed give the same plan on every machine. Neither the order of
    packs nor that of the samples in a pack follows their lengths. No slot is kept free: a sample of exactly
    `capacity` is a pack.

    Args:
        lengths: tokens of each sample, integers 1 ... capacity [samples].
        capacity: slots of a pack, in tokens.
        seed: of every random choice.

    Raises:
        ValueError: a length below 1 or above `capacity` (the caller truncates or drops first), a negative seed.
    """
    checked = _checked(lengths, capacity)
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be 0 or more")
    if checked.size == 0:
        return PackPlan(np.zeros(0, np.int64), np.zeros(1, np.int64))
    random = np.random.Generator(np.random.PCG64(seed))
    index = np.int32 if checked.size < 2**31 else np.int64
    shuffled = random.permutation(np.arange(checked.size, dtype=index))
    stream = checked[shuffled]
    counts = np.bincount(stream, minlength=capacity + 1)
    planned, starts = _fullest(stream, counts, capacity)
    return _placed(shuffled, stream, counts, planned, starts, random)


def _checked(lengths: npt.ArrayLike, capacity: int) -> npt.NDArray[Any]:
    """`lengths` as an array, after checks."""
    if capacity < 1:
        raise ValueError(f"capacity is {capacity}; it must be 1 or more")
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be one row of integers, not {array.ndim} dimensions of {array.dtype}")
    if array.size and (array.min() < 1 or array.max() > capacity):
        wrong = int(np.flatnonzero((array < 1) | (array > capacity))[0])
        raise ValueError(f"sample {wrong} has length {array[wrong]}; lengths must be 1 to {capacity} (the capacity)")
    return array.astype(np.int32 if capacity < 2**31 else np.int64, copy=False)


def _fullest(stream: npt.NDArray[Any], counts: Int64s, capacity: int) -> tuple[npt.NDArray[Any], Int64s]:
    """The lengths of the plan with the fewest packs; of equal ones, no pack above twice the mean, then the most even.

    Returns the lengths, pack after pack, and where each pack starts.
    """
    least = min_packs(stream, capacity)
    best, best_starts, best_score = stream, np.zeros(0, np.int64), (stream.size + 1, 0.0, 0.0)
    for attempt in _ATTEMPTS:
        planned, starts = _filled(stream, counts, capacity, attempt)
        held = np.diff(starts)
        score = (len(held), max(2.0, held.max() / held.mean()), float(held.std()))
        if score < best_score:
            best, best_starts, best_score = planned, starts, score
        if best_score[0] <= least * (1 + FULL_ENOUGH):
            return best, best_starts
    if best_score[0] > least * (1 + SORTED_IF_SAVES):
        descending = np.repeat(np.arange(capacity, -1, -1, dtype=stream.dtype), counts[::-1])
        planned, starts = _filled(descending, counts, capacity, None)
        if len(starts) - 1 < best_score[0] * (1 - SORTED_IF_SAVES):
            return planned, starts
    return best, best_starts


def _filled(
    stream: npt.NDArray[Any], counts: Int64s, capacity: int, attempt: _Attempt | None
) -> tuple[npt.NDArray[Any], Int64s]:
    """Run `kernel.fill_packs` once; without an attempt: as best fit on a descending stream."""
    is_large = stream > capacity // 2
    large, small = stream[is_large], stream[~is_large]
    least = max(-(-int(stream.sum(dtype=np.int64)) // capacity), large.size)
    below = np.maximum.accumulate(np.where(counts > 0, np.arange(capacity + 1), 0)).astype(np.int32)
    if attempt is None:
        spread, draw_while, draw_more_while, pace, tries = 0, capacity, capacity, 0.0, 1
    else:
        mean = -(-int(small.sum(dtype=np.int64)) // small.size) if small.size else 1
        # Closing at one mean length, or at three, tips the packs to hold more samples, or fewer.
        spread, draw_while, draw_more_while = int(least * (1 - 2 * attempt.lead)), 3 * mean, mean
        pace = (1 - attempt.lead) * stream.size / int(stream.sum(dtype=np.int64))
        tries = attempt.tries
    from mindspeed_llm.packing import packing_loops  # imports numba, which takes a moment

    planned, starts = np.empty_like(stream), np.empty(stream.size + 1, np.int64)
    packs = packing_loops.fill_packs(
        large,
        small,
        capacity,
        spread,
        draw_while,
        draw_more_while,
        pace,
        tries,
        counts.astype(np.int64),
        below,
        planned,
        starts,
    )
    return planned, starts[: packs + 1].copy()


def _placed(
    shuffled: npt.NDArray[Any],
    stream: npt.NDArray[Any],
    counts: Int64s,
    planned: npt.NDArray[Any],
    starts: Int64s,
    random: np.random.Generator,
) -> PackPlan:
    """Samples in the places of their lengths, in shuffled packs and shuffled inside them."""
    packs = len(starts) - 1
    pack_order = random.permutation(packs)
    draws = random.integers(0, 2**32, stream.size, dtype=np.uint32)
    group_starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    from mindspeed_llm.packing import packing_loops  # imports numba, which takes a moment

    by_length = np.empty_like(shuffled)
    packing_loops.group_by_length(shuffled, stream, group_starts.copy(), by_length)
    order, order_starts = np.empty(stream.size, np.int64), np.empty(packs + 1, np.int64)
    packing_loops.place_samples(by_length, group_starts, planned, starts, pack_order, draws, order, order_starts)
    return PackPlan(order, order_starts)
