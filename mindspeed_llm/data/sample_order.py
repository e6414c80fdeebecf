"""Which pack is trained when: a function of (seed, epoch, number of packs) alone.

Nothing here knows of ranks, micro-batches, workers or of where a run was resumed. A run is one endless line of
positions 0, 1, 2, …; a global batch of G packs takes positions consumed … consumed + G − 1. G may change from one batch
to the next: the line does not. What rounds an epoch up, or groups it, is the unit of the order, which a run keeps.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

SPLIT_STREAM = 1
EPOCH_STREAM = 2


def seeded_permutation(n: int, *words: int) -> np.ndarray:
    """A permutation of 0 … n−1 (int64 [n]) that depends on `words` alone.

    It sorts raw draws of PCG64: numpy keeps a bit generator's stream the same in every version, while
    `Generator.permutation` may change, and with it the data order of a run resumed after an upgrade.
    """
    raw = np.random.PCG64(np.random.SeedSequence([*words, n])).random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


class SampleOrder(Protocol):
    """The endless line of packs of one split."""

    @property
    def epoch_length(self) -> int:
        """Positions in one epoch, repeated ones included."""
        ...

    def positions(self, start: int, count: int) -> np.ndarray:
        """Numbers, in the split, of the packs at positions start … start + count − 1; int64 [count]."""
        ...


class PackOrder:
    """The order of the packs of one split, epoch after epoch.

    Five packs, `round_up_to=4`, not shuffled; each epoch repeats its own first packs:

        position   0 1 2 3 4 5 6 7 | 8 9 10 …
        epoch      0 0 0 0 0 0 0 0 | 1 1 1
        pack       0 1 2 3 4 0 1 2 | 0 1 2

    Args:
        packs: number of packs in the split, at least 1.
        seed: of the run.
        shuffle: one seeded permutation per epoch; False reads every epoch in file order.
        round_up_to: the unit of the order under --padded-samples, which is the first global batch size of the run, so
            that epochs and batches end together as long as it stays; None lets a global batch span two epochs.
        stream: keeps apart the orders of several data sets of equal size under one seed.

    Only the permutation of the epoch in use is kept.
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
        """Positions in one epoch, repeated ones included."""
        return round_up(self.packs, self.round_up_to)

    def positions(self, start: int, count: int) -> np.ndarray:
        """Numbers, in the split, of the packs at positions start … start + count − 1; int64 [count]."""
        found = np.empty(count, dtype=np.int64)
        for at, epoch, offset, size in split_at_epochs(start, count, self.epoch_length):
            found[at : at + size] = self._epoch(epoch)[np.arange(offset, offset + size) % self.packs]
        return found

    def _epoch(self, epoch: int) -> np.ndarray:
        """The packs of `epoch`, each once; int64 [packs]."""
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
    """`packs`, or the next multiple of `round_up_to`."""
    return packs if round_up_to is None else -(-packs // round_up_to) * round_up_to


def split_at_epochs(start: int, count: int, epoch_length: int) -> list[tuple[int, int, int, int]]:
    """Cut positions start … start + count − 1 at the ends of epochs.

    Returns: (place in the answer, epoch, offset in the epoch, size) of each piece.
    """
    if start < 0 or count < 0:
        raise ValueError(f"positions start at 0; asked for {count} from {start}")
    cut = []
    at = 0
    while at < count:
        epoch, offset = divmod(start + at, epoch_length)
        size = min(count - at, epoch_length - offset)
        cut.append((at, epoch, offset, size))
        at += size
    return cut
