"""Store the tokens of all samples on disk until the packs are planned, so that memory does not grow with the data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.tokenization.encoded_texts import Ids
from mindspeed_llm.tokenization.tokenizer import MAX_IDS

Words = NDArray[np.uint32]
FILE = "tokens"
BYTES = 4  # per word
ID = np.uint32(MAX_IDS - 1)
TRAINED = np.uint32(MAX_IDS)  # the label is the id
ENDS = np.uint32(1 << 31)  # the label is the end token, but the id is not: see chat.Span.end_label


def encode_words(ids: Ids, labels: Ids, eos_id: int) -> Words:
    """Return one word of 32 bits per token: the id, and in the two highest bits the kind of label.

        ids       5    6    7    8    9
        labels  -100 -100   7    8    E       E: the end token
        words     5    6   7+T  8+T  9+E      neither bit: not trained

    Args:
        ids: token ids, int32 [tokens].
        labels: their labels, int32 [tokens], not shifted: the id, the end token, or not trained.
        eos_id: id of the end token.

    Returns:
        the words, uint32 [tokens].
    """
    trained = labels == ids
    words: Words = ids.view(np.uint32) | trained * TRAINED
    ends = ~trained & (labels != IGNORE_INDEX)
    if ends.any():
        assert (labels[ends] == eos_id).all(), "a label is the id, the end token, or not trained"
        words[ends] |= ENDS
    return words


class TokenStore:
    """A file with one word of 32 bits per token, see `encode_words`.

    The samples follow one another. Their lengths stay in memory (4 bytes per sample, 12 after `finish`).

    Args:
        folder: an empty directory, which the caller removes. It may be moved once the writing has ended.
        eos_id: id of the end token, see `find_end_token`.

    Attributes:
        lengths: number of tokens of each sample, int32 [samples]; complete after `finish`.
    """

    def __init__(self, folder: Path, eos_id: int) -> None:
        self._path, self._eos_id = folder / FILE, eos_id
        self._file: BinaryIO = self._path.open("wb", buffering=1 << 20)
        self._lengths: list[NDArray[np.int32]] = []
        self.lengths: NDArray[np.int32] = np.zeros(0, np.int32)
        self._starts = np.zeros(1, np.int64)

    @classmethod
    def reopened(cls, folder: Path, eos_id: int, lengths: NDArray[np.int32]) -> TokenStore:
        """Open a finished store.

        Args:
            folder: directory of the store; the caller has checked its files.
            eos_id: id of the end token.
            lengths: number of tokens of each sample, int32 [samples], as `finish` has returned them.
        """
        # Without __init__, which would create an empty file.
        store = cls.__new__(cls)
        store._path, store._eos_id, store._lengths = folder / FILE, eos_id, []
        store._begin_reading(lengths)
        return store

    def append(self, words: Words, lengths: NDArray[np.int32]) -> None:
        """Write samples after the previous ones.

        Args:
            words: their tokens, uint32 [tokens], see `encode_words`.
            lengths: number of tokens of each sample, int32 [samples].
        """
        self._file.write(words.data)
        self._lengths.append(lengths)

    def finish(self) -> NDArray[np.int32]:
        """End the writing, begin the reading and return the lengths of the samples, int32 [samples]."""
        self.close()
        self._begin_reading(np.concatenate([self.lengths, *self._lengths]))
        self._lengths = []
        return self.lengths

    def _begin_reading(self, lengths: NDArray[np.int32]) -> None:
        # The file is read, not mapped, because the pages of a mapping count as memory of this process.
        self._file = self._path.open("rb", buffering=0)
        self.lengths = lengths
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

    def read_into(self, words: Words, numbers: NDArray[np.int64], offsets: NDArray[np.int64]) -> None:
        """Write samples into an array of words; allowed after `finish`.

        Args:
            words: target, uint32 [slots].
            numbers: indices of the samples, int64 [samples].
            offsets: index in `words` of the first token of each sample, int64 [samples].
        """
        target = words.view(np.uint8).data
        starts, sizes = BYTES * self._starts[numbers], BYTES * self.lengths[numbers]
        for start, size, offset in zip(starts.tolist(), sizes.tolist(), (BYTES * offsets).tolist(), strict=True):
            self._read(start, target[offset : offset + size])

    def _read(self, start: int, into: memoryview) -> None:
        data = os.pread(self._file.fileno(), len(into), start)
        assert len(data) == len(into), "the file of the store became shorter while it was in use"
        into[:] = data

    def decoded(self, words: Words) -> tuple[Ids, Ids]:
        """Return (ids, labels), int32 [slots] each, of words [slots]."""
        ids = (words & ID).view(np.int32)
        labels = np.where(words & TRAINED, ids, np.int32(IGNORE_INDEX))
        ends = words >= ENDS
        if ends.any():
            labels[ends] = self._eos_id
        return ids, labels

    def samples(self, first: int, last: int) -> tuple[Ids, Ids]:
        """Return (ids, labels), int32 [tokens] each, of consecutive samples; allowed after `finish`.

        Args:
            first: index of the first sample.
            last: index after the last sample.
        """
        start, end = int(self._starts[first]), int(self._starts[last])
        words = np.empty(end - start, np.uint32)
        self._read(BYTES * start, words.view(np.uint8).data)
        return self.decoded(words)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
