"""Length-grouped sample order: a global batch holds unpacked samples of similar lengths, which reduces padding.

The method follows XTuner's LengthGroupedSampler: a random order is cut into long stretches, each stretch is sorted by
length and cut into batches, and the batches are shuffled.
"""

from __future__ import annotations

import numpy as np

from mindspeed_llm.data.sample_order import EPOCH_STREAM, round_up, seeded_permutation, split_at_epochs

# Batches per stretch. A stretch is long enough that a batch has nearly equal lengths, and short enough that the batches
# differ from epoch to epoch.
BATCHES_OF_A_STRETCH = 50
# Random numbers that are independent of those of the epochs (EPOCH_STREAM) and of the splits.
_BATCH_STREAM = 3


class LengthGroupedOrder:
    """Order of the samples of one split, grouped by length.

    Samples of lengths 2 9 3 7 in batches of two, padded to the longer sample:

        random      2 9 | 3 7    21 tokens in 32 slots    65.6 %
        grouped     7 9 | 2 3    21 tokens in 24 slots    87.5 %

    Every epoch contains every sample once. As with --padded-samples, it is rounded up to complete batches by repeating
    the first samples of its random order. Inside a batch the lengths rise, so that the micro-batches which the
    data-parallel ranks process at the same time are similar, too. The order depends only on the seed, the epoch and
    the lengths. Only the epoch in use is kept in memory.

    Args:
        lengths: length of every sample of the split, in tokens; integers [samples], at least one.
        batch: samples per group: the unit of the order, which is the first global batch size of the run. With
            another batch size every sample is still used once, but a batch may hold parts of several groups.
        seed: seed of the run.

    Raises:
        ValueError: there is no sample, or `batch` is below 1.
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
        """Number of positions in one epoch, including repeated samples."""
        return round_up(len(self._lengths), self._batch)

    def positions(self, start: int, count: int) -> np.ndarray:
        """Return the numbers, in the split, of the samples at positions start … start + count − 1; int64 [count]."""
        samples = np.empty(count, dtype=np.int64)
        for index, epoch, offset, size in split_at_epochs(start, count, self.epoch_length):
            samples[index : index + size] = self._epoch(epoch)[offset : offset + size]
        return samples

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return the samples of `epoch`, repeated samples included; int64 [epoch_length]."""
        if self._current is None or self._current[0] != epoch:
            drawn = seeded_permutation(len(self._lengths), self._seed, EPOCH_STREAM, 0, epoch)
            drawn = np.resize(drawn, self.epoch_length)  # np.resize repeats the array from its start
            stretch = np.arange(len(drawn)) // (BATCHES_OF_A_STRETCH * self._batch)
            grouped = drawn[np.lexsort((self._lengths[drawn], stretch))].reshape(-1, self._batch)
            batches = seeded_permutation(len(grouped), self._seed, _BATCH_STREAM, epoch)
            self._current = (epoch, grouped[batches].reshape(-1))
        return self._current[1]
