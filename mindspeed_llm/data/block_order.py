"""Order of the blocks of a split, computed for each position, so that no array of all blocks is needed.

Like the orders of packs (sample_order.py) it depends on (seed, epoch, number of blocks) only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindspeed_llm.data.blending import first_indices
from mindspeed_llm.data.sample_order import EPOCH_STREAM, PackOrder
from mindspeed_llm.data.seeded_hash import IndexPermutation


class BlockOrder(PackOrder):
    """Order of the blocks of one data set, or of several that form one list; parameters as for `PackOrder`."""

    def _of_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        if not self.shuffle:
            return offsets
        return IndexPermutation(self.packs, self.seed, EPOCH_STREAM, self.stream, epoch)(offsets)


class InterleavedOrder(BlockOrder):
    """Order of several data sets without shuffling: in file order, each spread evenly over the epoch.

    Block j of a data set of n blocks is at (j + ½) / n of the epoch. Four blocks of A and two of B:

        position   0 1 2 3 4 5
        data set   A B A A B A
        block      0 4 1 2 5 3         numbered over both data sets

    Args:
        sizes: number of blocks of each data set, at least 1.
        round_up_to: as for `PackOrder`.
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
        start, total = int(offsets[0]), self.packs
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
