"""Tokens of all samples on disk until the packs are planned, so that memory does not grow with the data."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import IGNORED
from mindspeed_llm.tokenization.sample_builder import TokenBatch
from mindspeed_llm.tokenization.tokenizer import MOST_IDS, Ids

Words = NDArray[np.uint32]
FILE = "tokens"
BYTES = 4  # of a word
ID = np.uint32(MOST_IDS - 1)
TRAINED = np.uint32(MOST_IDS)  # the label is the id
ENDS = np.uint32(1 << 31)  # the label is the end token, and the id is another: see chat.Span.end_label


class TokenStore:
    """One file of words of 32 bits, a word for each token: its id, and in the two highest bits what its label is.

        ids       5    6    7    8    9
        labels  -100 -100   7    8    E       E: the end token
        words     5    6   7+T  8+T  9+E      neither bit: not trained

    Sample follows after sample; their lengths stay in memory (4 bytes a sample, 12 after `finish`).

    Args:
        folder: an empty folder of the caller, who also removes it. It may be moved once the writing has ended.
        eos_id: see `find_end_token`.
    """

    def __init__(self, folder: Path, eos_id: int) -> None:
        self._path, self._eos_id = folder / FILE, eos_id
        self._file: BinaryIO = self._path.open("wb", buffering=1 << 20)
        self._lengths: list[NDArray[np.int32]] = []
        self.lengths: NDArray[np.int32] = np.zeros(0, np.int32)
        self._starts = np.zeros(1, np.int64)

    @classmethod
    def reopened(cls, folder: Path, eos_id: int, lengths: NDArray[np.int32]) -> TokenStore:
        """One that was finished, with these lengths, in a folder that the caller has checked."""
        store = cls.__new__(cls)
        store._path, store._eos_id, store._lengths = folder / FILE, eos_id, []
        store._begin_reading(lengths)
        return store

    def append(self, batch: TokenBatch) -> None:
        """Write the samples of `batch` after those before."""
        self._file.write(self._words(batch.ids, batch.labels).data)
        self._lengths.append(batch.lengths)

    def _words(self, ids: Ids, labels: Ids) -> Words:
        trained = labels == ids
        words = ids.view(np.uint32) | trained * TRAINED
        ends = ~trained & (labels != IGNORED)
        if ends.any():
            assert (labels[ends] == self._eos_id).all(), "a label is the id, the end token, or not trained"
            words[ends] |= ENDS
        return words

    def finish(self) -> NDArray[np.int32]:
        """End the writing and begin the reading; the length of every sample."""
        self.close()
        self._begin_reading(np.concatenate([self.lengths, *self._lengths]))
        self._lengths = []
        return self.lengths

    def _begin_reading(self, lengths: NDArray[np.int32]) -> None:
        # Read, not mapped: the pages of a mapping count as memory of this process.
        self._file = self._path.open("rb", buffering=0)
        self.lengths = lengths
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

    def read_into(self, words: Words, numbers: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Put the samples with these numbers at `places` of `words` [slots]; after `finish`."""
        target = words.view(np.uint8).data
        starts, sizes = BYTES * self._starts[numbers], BYTES * self.lengths[numbers]
        for start, size, place in zip(starts.tolist(), sizes.tolist(), (BYTES * places).tolist(), strict=True):
            self._read(start, target[place : place + size])

    def _read(self, start: int, into: memoryview) -> None:
        self._file.seek(start)
        read = self._file.readinto(into)  # type: ignore[attr-defined]
        assert read == len(into), "the store was cut short while in use"

    def decoded(self, words: Words) -> tuple[Ids, Ids]:
        """(ids, labels) of words."""
        ids = (words & ID).view(np.int32)
        labels = np.where(words & TRAINED, ids, np.int32(IGNORED))
        ends = words >= ENDS
        if ends.any():
            labels[ends] = self._eos_id
        return ids, labels

    def samples(self, first: int, last: int) -> tuple[Ids, Ids]:
        """(ids, labels) of the samples from number `first` to before `last`, one after the other; after `finish`."""
        start, end = int(self._starts[first]), int(self._starts[last])
        words = np.empty(end - start, np.uint32)
        self._read(BYTES * start, words.view(np.uint8).data)
        return self.decoded(words)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
