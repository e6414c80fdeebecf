"""Order of the blocks of a split, computed for each position, so that no array of all blocks is needed.

Like the orders of packs (sample_order.py) it depends on (seed, epoch, number of blocks) only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindspeed_llm.data.blending import blend_indices, first_indices
from mindspeed_llm.data.sample_order import EPOCH_STREAM, round_up, split_at_epochs
from mindspeed_llm.data.seeded_hash import IndexPermutation

# Positions after which the pattern of a blend with weights repeats: 640 KiB. The share of a data set differs from its
# weight by less than one block per pattern.
PATTERN = 1 << 16


class BlockOrder:
    """Order of the blocks of one data set, or of several that form one list.

    Args:
        blocks: number of blocks, at least 1.
        seed: seed of the run.
        shuffle: True for one permutation per epoch, False for file order in every epoch.
        round_up_to: number of blocks to which each epoch is rounded up (--padded-samples); None for none. The first
            blocks of the epoch are repeated at its end.
        stream: number of the data set in a blend, so that sets of equal size have different permutations.
    """

    def __init__(
        self, blocks: int, seed: int, shuffle: bool = True, round_up_to: int | None = None, stream: int = 0
    ) -> None:
        self.blocks, self.seed, self.shuffle, self.stream = blocks, seed, shuffle, stream
        self._epoch_length = round_up(blocks, round_up_to)

    @property
    def epoch_length(self) -> int:
        """Number of positions in one epoch, including repeated blocks."""
        return self._epoch_length

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers of the blocks at positions start … start + count − 1; int64 [count]."""
        found = np.empty(count, np.int64)
        for index, epoch, offset, size in split_at_epochs(start, count, self.epoch_length):
            found[index : index + size] = self._of_epoch(epoch, np.arange(offset, offset + size) % self.blocks)
        return found

    def _of_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Return the blocks at some offsets of an epoch; int64 [offsets] → int64 [offsets]."""
        if not self.shuffle:
            return offsets
        return IndexPermutation(self.blocks, self.seed, EPOCH_STREAM, self.stream, epoch)(offsets)


class InterleavedOrder(BlockOrder):
    """Order of several data sets without shuffling: in file order, each spread evenly over the epoch.

    Block j of a data set of n blocks is at (j + ½) / n of the epoch. Four blocks of A and two of B:

        position   0 1 2 3 4 5
        data set   A B A A B A
        block      0 4 1 2 5 3         numbered over both data sets

    Args:
        sizes: number of blocks of each data set, at least 1.
        round_up_to: as for `BlockOrder`.
    """

    def __init__(self, sizes: Sequence[int], round_up_to: int | None = None) -> None:
        super().__init__(sum(sizes), seed=0, shuffle=False, round_up_to=round_up_to)
        self._sizes = tuple(sizes)
        self._firsts = first_indices(sizes)

    def _of_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Return the blocks at consecutive offsets of an epoch, which may wrap around; int64 [offsets]."""
        parts = [self._between(part) for part in np.split(offsets, np.flatnonzero(np.diff(offsets) < 0) + 1)]
        return np.concatenate(parts) if parts else offsets

    def _between(self, offsets: np.ndarray) -> np.ndarray:
        """Return the blocks at consecutive ascending offsets; int64 [offsets]."""
        if not len(offsets):
            return offsets
        start, total = int(offsets[0]), self.blocks
        # At most `start` blocks precede the time (start - data sets) / total: less than time · n + 1 of each set.
        time = max(0, start - len(self._sizes))
        # (j + ½) / n < time / total, in whole numbers.
        before = [max(0, -((total - 2 * time * size) // (2 * total))) for size in self._sizes]
        skipped = start - sum(before)
        needed = skipped + len(offsets)
        numbers, times, which = [], [], []
        for number, (size, first) in enumerate(zip(self._sizes, before, strict=True)):
            blocks = np.arange(first, min(first + needed, size))
            numbers.append(blocks + self._firsts[number])
            times.append((2 * blocks + 1) / (2 * size))
            which.append(np.full(len(blocks), number))
        order = np.lexsort((np.concatenate(which), np.concatenate(times)))
        return np.concatenate(numbers)[order[skipped : skipped + len(offsets)]]


class BlendedBlockOrder:
    """Order of several data sets with weights: at each position the data set that is furthest behind its share.

    Each data set has its own order and its own epochs. An epoch of the blend has as many positions as there are blocks
    in all data sets together.

    Args:
        sizes: number of blocks of each data set, at least 1.
        weights: share of each data set; the sum is 1.
        seed: seed of the run.
        shuffle: whether to shuffle the blocks of each data set.
        round_up_to: as for `BlockOrder`.
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
        self._which, self._nth = blend_indices(weights, PATTERN)
        self._draws = np.bincount(self._which, minlength=len(sizes))
        self._firsts = first_indices(sizes)
        self._orders = [BlockOrder(size, seed, shuffle, stream=1 + d) for d, size in enumerate(sizes)]

    @property
    def epoch_length(self) -> int:
        """Number of positions in one epoch, including repeated blocks."""
        return self._epoch_length

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers of the blocks at positions start … start + count − 1; int64 [count]."""
        blocks = np.empty(count, np.int64)
        for index, epoch, offset, size in split_at_epochs(start, count, self._epoch_length):
            # Positions after the last block (--padded-samples) repeat the first positions of the epoch.
            for part_index, _, part_offset, part_size in split_at_epochs(offset, size, self._total):
                first, position = index + part_index, epoch * self._total + part_offset
                blocks[first : first + part_size] = self._from(position, part_size)
        return blocks

    def _from(self, start: int, count: int) -> np.ndarray:
        """Return the blocks from a position on, in an order without repeated positions; int64 [count]."""
        blocks = np.empty(count, np.int64)
        for index, pattern, offset, size in split_at_epochs(start, count, len(self._which)):
            which = self._which[offset : offset + size]
            for d in np.unique(which):
                places = np.flatnonzero(which == d)
                # The draws of one data set are consecutive, so the first draw is enough to find all of them.
                first = int(self._nth[offset + places[0]] + pattern * self._draws[d])
                blocks[index + places] = self._firsts[d] + self._orders[d].positions(first, len(places))
        return blocks
