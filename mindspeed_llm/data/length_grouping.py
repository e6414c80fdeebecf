"""An order in which a global batch holds unpacked samples of similar lengths, so that little of it is padding.

The idea is that of XTuner's LengthGroupedSampler: a random order is cut into long stretches, each stretch is sorted by
length and cut into batches, and the batches come in random order.
"""

from __future__ import annotations

import numpy as np

from mindspeed_llm.data.sample_order import EPOCH_STREAM, round_up, seeded_permutation, split_at_epochs

# Stretches of this many batches: long enough that a batch is nearly even, short enough that batches differ every epoch.
BATCHES_OF_A_STRETCH = 50
_BATCH_STREAM = 3


class LengthGroupedOrder:
    """The order of one split's samples, grouped by length, epoch after epoch.

    Samples of lengths 2 9 3 7 in batches of two, padded to the longer one:

        at random   2 9 | 3 7    21 tokens in 32 slots    65.6 %
        grouped     7 9 | 2 3    21 tokens in 24 slots    87.5 %

    Every epoch has every sample once and, as with --padded-samples, is rounded up to whole batches by repeating the
    first ones of its random order. Inside a batch the lengths rise, so that the micro-batches of all data-parallel
    ranks at one time are alike too. Like every order, it depends on the seed, the epoch and the data alone.

    Args:
        lengths: of every sample of the split; integers [samples], at least one.
        batch: samples of a group: the unit of the order, which is the first global batch size of the run. In batches
            of another size every sample still comes once, but a batch may hold parts of several groups.
        seed: of the run.

    Only the epoch in use is kept.
    """

    def __init__(self, lengths: np.ndarray, batch: int, seed: int) -> None:
        if len(lengths) < 1 or batch < 1:
            raise ValueError(f"needs a sample and a batch size from 1, not {len(lengths)} samples and {batch}")
        self._lengths = np.asarray(lengths)
        self._batch = batch
        self._seed = seed
        self._current: tuple[int, np.ndarray] | None = None

    @property
    def epoch_length(self) -> int:
        """Positions in one epoch, repeated ones included."""
        return round_up(len(self._lengths), self._batch)

    def positions(self, start: int, count: int) -> np.ndarray:
        """Numbers, in the split, of the samples at positions start … start + count − 1; int64 [count]."""
        found = np.empty(count, dtype=np.int64)
        for at, epoch, offset, size in split_at_epochs(start, count, self.epoch_length):
            found[at : at + size] = self._epoch(epoch)[offset : offset + size]
        return found

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._current is None or self._current[0] != epoch:
            drawn = seeded_permutation(len(self._lengths), self._seed, EPOCH_STREAM, 0, epoch)
            drawn = np.resize(drawn, self.epoch_length)  # repeats from the start
            stretch = np.arange(len(drawn)) // (BATCHES_OF_A_STRETCH * self._batch)
            grouped = drawn[np.lexsort((self._lengths[drawn], stretch))].reshape(-1, self._batch)
            batches = seeded_permutation(len(grouped), self._seed, _BATCH_STREAM, epoch)
            self._current = (epoch, grouped[batches].reshape(-1))
        return self._current[1]
