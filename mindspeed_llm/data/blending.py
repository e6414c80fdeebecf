"""Several data sets as one: --data-path 30 A 70 B, or --data-path A B C.

With weights, Megatron's rule decides at each position which data set has fallen furthest behind its share; each
data set runs through its own packs, in its own order and its own epochs. Without weights every pack of every data
set comes once per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.data.sample_order import PackOrder, round_up, split_at_epochs
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class Blend:
    """Prefixes of packed files and, if given, a weight for each (they sum to 1)."""

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None


def parse_blend(words: Sequence[str], flag: str = "--data-path") -> Blend:
    """Read 'A', 'A B C' or '30 A 70 B' as Megatron reads it.

    Raises:
        ConfigError: no data set, or a weight that is not above 0.
    """
    weights, prefixes = parse_data_path(list(words))
    if not prefixes:
        raise ConfigError(f"{flag} names no data set")
    if weights is None:
        return Blend(tuple(prefixes), None)
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ConfigError(f"{flag}: weights must be above 0; leave a data set out to give it none: {' '.join(words)}")
    return Blend(tuple(prefixes), tuple(weight / sum(weights) for weight in weights))


def blend_indices(
    weights: Sequence[float], size: int, sizes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Megatron's blending rule: position after position, the data set furthest behind its share.

    Args:
        weights: share of each data set; they sum to 1.
        size: how many positions to fill.
        sizes: if given, no data set is drawn more often than this (then size = Σ sizes draws everything once).

    Returns: `which` int16 [size], the data set at each position, and `nth` int64 [size], how often it was drawn before.

    Source: build_blending_indices and build_exhaustive_blending_indices of megatron.core.datasets.helpers, which are
    used where that extension is compiled.
    """
    which = np.zeros(size, dtype=np.int16)
    nth = np.zeros(size, dtype=np.int64)
    try:
        from megatron.core.datasets import helpers_cpp
    except ImportError:
        _blend_plain(weights, sizes, which, nth)
        return which, nth
    if sizes is None:
        helpers_cpp.build_blending_indices(which, nth, np.asarray(weights, np.float64), len(weights), size, False)
    else:
        helpers_cpp.build_exhaustive_blending_indices(which, nth, np.asarray(sizes, np.int64), len(sizes))
    return which, nth


def _blend_plain(weights: Sequence[float], sizes: Sequence[int] | None, which: np.ndarray, nth: np.ndarray) -> None:
    """The same rule in plain Python, about 1 µs a position and data set."""
    drawn = [0] * len(weights)
    open_sets = [d for d in range(len(weights)) if sizes is None or sizes[d] > 0]
    for position in range(len(which)):
        reached = max(float(position), 1.0)
        behind = max(open_sets, key=lambda d: weights[d] * reached - drawn[d])
        which[position] = behind
        nth[position] = drawn[behind]
        drawn[behind] += 1
        if sizes is not None and drawn[behind] == sizes[behind]:
            open_sets.remove(behind)


class MergedOrder:
    """Several data sets without weights: every pack of each once per epoch.

    In file order they are interleaved in proportion to their sizes, so that no data set is left to the end; shuffled,
    one permutation runs over all of them. Packs are numbered through: those of the first data set, then the second's.
    """

    def __init__(self, sizes: Sequence[int], seed: int, shuffle: bool = True, round_up_to: int | None = None) -> None:
        total = sum(sizes)
        which, nth = blend_indices([size / total for size in sizes], total, sizes)
        self._interleaved = _starts(sizes)[which] + nth
        self._order = PackOrder(total, seed, shuffle, round_up_to)

    @property
    def epoch_length(self) -> int:
        """Positions in one epoch, repeated ones included."""
        return self._order.epoch_length

    def positions(self, start: int, count: int) -> np.ndarray:
        """Numbers of the packs at positions start … start + count − 1; int64 [count]."""
        return self._interleaved[self._order.positions(start, count)]


class BlendOrder:
    """Several data sets with weights.

    An epoch is as many positions as there are packs in all. Three packs of A (0 1 2) and three of B (3 4 5), weights
    2/3 and 1/3, not shuffled; A begins its second round while B is still in its first:

        position   0 1 2 3 4 5 | 6 7 8 …
        data set   A B A A B A | A B A
        pack       0 3 1 2 4 0 | 1 5 2

    Args:
        sizes: number of packs of each data set, at least 1.
        weights: share of each data set; they sum to 1.
        seed, shuffle, round_up_to: as for PackOrder.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        shuffle: bool = True,
        round_up_to: int | None = None,
    ) -> None:
        self._total = sum(sizes)
        self._epoch_length = round_up(self._total, round_up_to)
        self._which, self._nth = blend_indices(weights, self._total)
        self._draws = np.bincount(self._which, minlength=len(sizes))
        self._starts = _starts(sizes)
        self._orders = [PackOrder(size, seed, shuffle, stream=1 + d) for d, size in enumerate(sizes)]

    @property
    def epoch_length(self) -> int:
        """Positions in one epoch, repeated ones included."""
        return self._epoch_length

    def positions(self, start: int, count: int) -> np.ndarray:
        """Numbers of the packs at positions start … start + count − 1; int64 [count]."""
        found = np.empty(count, dtype=np.int64)
        for at, epoch, offset, size in split_at_epochs(start, count, self._epoch_length):
            # Positions past the last pack (--padded-samples) repeat the epoch's first ones.
            for part_at, _, part_offset, part_size in split_at_epochs(offset, size, self._total):
                found[at + part_at : at + part_at + part_size] = self._drawn(epoch, part_offset, part_size)
        return found

    def _drawn(self, epoch: int, offset: int, size: int) -> np.ndarray:
        """The packs at offsets of one epoch, none of them repeated ones; int64 [size]."""
        which = self._which[offset : offset + size]
        nth = self._nth[offset : offset + size]
        found = np.empty(size, dtype=np.int64)
        for d in np.unique(which):
            places = np.flatnonzero(which == d)
            # The draws of one data set inside a part follow one another without a gap.
            first = int(nth[places[0]] + epoch * self._draws[d])
            found[places] = self._starts[d] + self._orders[d].positions(first, len(places))
        return found


def _starts(sizes: Sequence[int]) -> np.ndarray:
    """The number of the first pack of each data set; int64 [data sets]."""
    return np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
