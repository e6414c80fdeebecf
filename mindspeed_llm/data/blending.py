"""Blend several datasets into one: --data-path 30 A 70 B, or --data-path A B C.

With weights, Megatron's rule selects for each position the dataset that is furthest behind its share. Each dataset
has its own order and its own epochs. Without weights, every pack of every dataset is used once per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.data.sample_order import PackOrder, SampleOrder, round_up, split_at_epochs
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class Blend:
    """The datasets of a split.

    Attributes:
        prefixes: prefix of the packed files of each dataset.
        weights: share of each dataset, normalised to a sum of 1; None if no weights are given.
    """

    prefixes: tuple[str, ...]
    weights: tuple[float, ...] | None


def parse_blend(words: Sequence[str], flag: str = "--data-path") -> Blend:
    """Parse the arguments of a data path flag, 'A', 'A B C' or '30 A 70 B', in the same way as Megatron.

    Args:
        words: the arguments of the flag.
        flag: name of the flag, for error messages.

    Returns:
        The prefixes and the normalised weights (sum 1); the weights are None if the flag gives none.

    Raises:
        ConfigError: there is no dataset, or a weight is not finite or not above 0.
    """
    weights, prefixes = parse_data_path(list(words))
    if not prefixes:
        raise ConfigError(f"{flag} names no dataset")
    if weights is None:
        return Blend(tuple(prefixes), None)
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ConfigError(
            f"{flag}: weights must be above 0; to exclude a dataset, remove it from the flag: {' '.join(words)}"
        )
    return Blend(tuple(prefixes), tuple(weight / sum(weights) for weight in weights))


def blend_indices(
    weights: Sequence[float], size: int, sizes: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute Megatron's blend: for each position, the dataset that is furthest behind its share.

    Source: build_blending_indices and build_exhaustive_blending_indices of megatron.core.datasets.helpers.

    Args:
        weights: share of each dataset; the sum is 1.
        size: number of positions.
        sizes: maximum number of draws of each dataset, or None for no limit. With size = Σ sizes, every pack is drawn
            exactly once.

    Returns:
        Dataset at each position, int16 [size], and number of earlier draws of that dataset, int64 [size].
    """
    which = np.zeros(size, dtype=np.int16)
    nth = np.zeros(size, dtype=np.int64)
    # The C++ extension is not compiled on every installation. Both implementations give the same result, so the order
    # of a run does not depend on the installation.
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
    """Fill `which` int16 [size] and `nth` int64 [size] in plain Python, in about 1 µs per position and dataset."""
    drawn = [0] * len(weights)
    open_sets = [d for d in range(len(weights)) if sizes is None or sizes[d] > 0]
    for position in range(len(which)):
        # The lower bound of 1 is part of Megatron's rule: without it all datasets would tie at position 0.
        reached = max(float(position), 1.0)
        behind = max(open_sets, key=lambda d: weights[d] * reached - drawn[d])
        which[position] = behind
        nth[position] = drawn[behind]
        drawn[behind] += 1
        if sizes is not None and drawn[behind] == sizes[behind]:
            open_sets.remove(behind)


class MergedOrder:
    """Order of several datasets without weights: every pack of every dataset is used once per epoch.

    Without shuffling, the datasets are interleaved in proportion to their sizes, so that no dataset is left to the end
    of an epoch. With shuffling, one permutation covers all of them. Pack numbers are consecutive over the datasets:
    first the packs of the first dataset, then those of the second.

    Args:
        sizes: number of packs of each dataset, at least 1.
        seed: seed of the run.
        shuffle: whether to shuffle each epoch.
        round_up_to: as for `PackOrder`.
    """

    def __init__(self, sizes: Sequence[int], seed: int, shuffle: bool = True, round_up_to: int | None = None) -> None:
        total = sum(sizes)
        which, nth = blend_indices([size / total for size in sizes], total, sizes)
        self._interleaved = first_indices(sizes)[which] + nth
        self._order = PackOrder(total, seed, shuffle, round_up_to)

    @property
    def epoch_length(self) -> int:
        """Number of positions in one epoch, including repeated packs."""
        return self._order.epoch_length

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers of the packs at positions start … start + count − 1; int64 [count]."""
        return self._interleaved[self._order.positions(start, count)]


class BlendOrder:
    """Order of several datasets with weights.

    An epoch has as many positions as there are packs in all datasets together. The example has three packs of A (0 1 2)
    and three packs of B (3 4 5), weights 2/3 and 1/3, and no shuffling. A starts its second epoch while B is still in
    its first:

        position   0 1 2 3 4 5 | 6 7 8 …
        dataset    A B A A B A | A B A
        pack       0 3 1 2 4 0 | 1 5 2

    Args:
        sizes: number of packs or blocks of each dataset, at least 1.
        weights: share of each dataset; the sum is 1.
        seed: seed of the run.
        shuffle: whether to shuffle the packs of each dataset.
        round_up_to: as for `PackOrder`.
        order: class of the order of each dataset, with the parameters of `PackOrder`.
        pattern: number of positions after which the sequence of datasets repeats; None for one epoch of the blend.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int,
        shuffle: bool = True,
        round_up_to: int | None = None,
        order: Callable[..., SampleOrder] = PackOrder,
        pattern: int | None = None,
    ) -> None:
        self._total = sum(sizes)
        self._epoch_length = round_up(self._total, round_up_to)
        self._which, self._nth = blend_indices(weights, pattern or self._total)
        self._draws = np.bincount(self._which, minlength=len(sizes))
        self._starts = first_indices(sizes)
        self._orders = [order(size, seed, shuffle, stream=1 + d) for d, size in enumerate(sizes)]

    @property
    def epoch_length(self) -> int:
        """Number of positions in one epoch, including repeated packs."""
        return self._epoch_length

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers of the packs at positions start … start + count − 1; int64 [count]."""
        packs = np.empty(count, dtype=np.int64)
        for index, epoch, offset, size in split_at_epochs(start, count, self._epoch_length):
            # Positions after the last pack (--padded-samples) repeat the first positions of the epoch.
            for part_index, _, part_offset, part_size in split_at_epochs(offset, size, self._total):
                first, position = index + part_index, epoch * self._total + part_offset
                packs[first : first + part_size] = self._without_repeats(position, part_size)
        return packs

    def _without_repeats(self, start: int, count: int) -> np.ndarray:
        """Return the packs from a position on, where repeated positions are not counted; int64 [count]."""
        packs = np.empty(count, dtype=np.int64)
        for index, pattern, offset, size in split_at_epochs(start, count, len(self._which)):
            which = self._which[offset : offset + size]
            for d in np.unique(which):
                places = np.flatnonzero(which == d)
                # The draws of one dataset are consecutive, so the first draw is enough to find all of them.
                first = int(self._nth[offset + places[0]] + pattern * self._draws[d])
                packs[index + places] = self._starts[d] + self._orders[d].positions(first, len(places))
        return packs


def first_indices(sizes: Sequence[int]) -> np.ndarray:
    """Return the number of the first pack or block of each dataset; int64 [datasets].

    Args:
        sizes: number of packs or blocks of each dataset.
    """
    return np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)
