"""Order of samples and shuffling: a function of (seed, epoch, number of packs) only.

The order does not depend on ranks, micro-batches, threads or on resuming. A run is an endless sequence of positions
0, 1, 2, …; a global batch of G packs takes positions consumed … consumed + G − 1. The order stays the same if G changes
from one batch to the next. An epoch is rounded up, or grouped, by the unit of the order, which is constant in a run.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

# Constants in the seeds, so that permutations for different purposes are independent of each other.
SPLIT_STREAM = 1
EPOCH_STREAM = 2


def seeded_permutation(n: int, *seeds: int) -> np.ndarray:
    """Return a permutation of 0 … n−1 that depends only on `seeds` and `n`; int64 [n].

    Args:
        n: number of elements.
        *seeds: seed of the run, and numbers that identify the purpose of the permutation.
    """
    # Sorts raw draws of PCG64. numpy guarantees the stream of a bit generator in all versions, while
    # Generator.permutation may change, and with it the order of the samples in a run that is resumed after an upgrade.
    # The stable sort makes the result unique even if two draws are equal.
    raw = np.random.PCG64(np.random.SeedSequence([*seeds, n])).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


class SampleOrder(Protocol):
    """Protocol of the orders: an endless sequence of the packs of one split."""

    @property
    def epoch_length(self) -> int:
        """Number of positions in one epoch, including repeated packs."""
        ...

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers, in the split, of the packs at positions start … start + count − 1; int64 [count]."""
        ...


class PackOrder:
    """Order of the packs of one split of one dataset.

    Five packs, `round_up_to=4`, not shuffled. Each epoch repeats its first packs at its end:

        position   0 1 2 3 4 5 6 7 | 8 9 10 …
        epoch      0 0 0 0 0 0 0 0 | 1 1 1
        pack       0 1 2 3 4 0 1 2 | 0 1 2

    Only the permutation of the epoch in use is kept in memory.

    Args:
        packs: number of packs in the split, at least 1.
        seed: seed of the run.
        shuffle: True for one seeded permutation per epoch, False for file order in every epoch.
        round_up_to: unit of the order with --padded-samples, which is the first global batch size of the run: epochs
            and batches end together as long as the batch size stays the same. With None, a global batch may contain
            packs of two epochs.
        stream: number of the dataset in a blend, so that datasets of equal size have different permutations.

    Raises:
        ValueError: `packs` or `round_up_to` is below 1.
    """

    def __init__(
        self, packs: int, seed: int, shuffle: bool = True, round_up_to: int | None = None, stream: int = 0
    ) -> None:
        if packs < 1:
            raise ValueError(f"an order needs at least one pack, not {packs}")
        if round_up_to is not None and round_up_to < 1:
            raise ValueError(f"round_up_to is a number of packs, at least 1, not {round_up_to}")
        self.packs = packs
        self.seed = seed
        self.shuffle = shuffle
        self.round_up_to = round_up_to
        self.stream = stream
        self._current: tuple[int, np.ndarray] | None = None

    @property
    def epoch_length(self) -> int:
        """Number of positions in one epoch, including repeated packs."""
        return round_up(self.packs, self.round_up_to)

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers, in the split, of the packs at positions start … start + count − 1; int64 [count]."""
        packs = np.empty(count, dtype=np.int64)
        for index, epoch, offset, size in split_at_epochs(start, count, self.epoch_length):
            packs[index : index + size] = self._of_epoch(epoch, np.arange(offset, offset + size) % self.packs)
        return packs

    def _of_epoch(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Return the packs at some offsets of an epoch; int64 [offsets] → int64 [offsets]."""
        return self._epoch(epoch)[offsets]

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return the packs of `epoch`, each once; int64 [packs]."""
        # Without shuffling all epochs are equal, so the array of any epoch can be used.
        current = self._current
        if current is None or (self.shuffle and current[0] != epoch):
            if self.shuffle:
                packs = seeded_permutation(self.packs, self.seed, EPOCH_STREAM, self.stream, epoch)
            else:
                packs = np.arange(self.packs, dtype=np.int64)
            current = (epoch, packs)
            self._current = current
        return current[1]


def round_up(packs: int, round_up_to: int | None) -> int:
    """Return `packs` rounded up to a multiple of `round_up_to`; unchanged for None."""
    return packs if round_up_to is None else -(-packs // round_up_to) * round_up_to


def split_at_epochs(start: int, count: int, epoch_length: int) -> list[tuple[int, int, int, int]]:
    """Cut the positions start … start + count − 1 at the ends of epochs.

    Args:
        start: first position.
        count: number of positions.
        epoch_length: number of positions in an epoch.

    Returns:
        (index relative to `start`, epoch, offset in the epoch, size) of each part.

    Raises:
        ValueError: `start` or `count` is negative.
    """
    if start < 0 or count < 0:
        raise ValueError(f"positions start at 0; asked for {count} from {start}")
    parts = []
    index = 0
    while index < count:
        epoch, offset = divmod(start + index, epoch_length)
        size = min(count - index, epoch_length - offset)
        parts.append((index, epoch, offset, size))
        index += size
    return parts
