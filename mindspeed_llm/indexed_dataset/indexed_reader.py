"""Read one .bin/.idx pair, after every check that its index allows: the index at once, sequences when asked for."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.idx_header import HEAD, PREPROCESS_AGAIN, IdxHeader, read_idx_header
from mindspeed_llm.indexed_dataset.positional_file import PositionalFile

# Numbers of an index that are read at a time: an index of 100 million sequences takes 2 GB.
NUMBERS_AT_ONCE = 1 << 20


class IndexedReader:
    """The sequences of one .bin/.idx pair.

    Every number of the index is checked here, so that no damage to it shows later as a crash or as wrong tokens;
    the tokens themselves are checked by `hash_check.check_files`. 12 bytes per sequence stay in memory.

    Args:
        prefix: path without .bin or .idx.

    Attributes:
        lengths: of each sequence, in tokens [sequences].
        dtype: of the tokens.

    Raises:
        DataError: a file is missing, damaged, or does not fit the other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.idx_path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        index = PositionalFile(self.idx_path)
        head = read_idx_header(self.idx_path, index.size, index.read(0, min(HEAD.size, index.size)))
        self.dtype = head.dtype
        self.lengths: npt.NDArray[np.int32] = index.numbers("<i4", head.sequences, HEAD.size)
        if self.lengths.size and int(self.lengths.min()) < 0:
            raise DataError(f"{self.idx_path}: a sequence of negative length: {PREPROCESS_AGAIN}")
        ends = np.cumsum(self.lengths, dtype=np.int64)
        self._ends: npt.NDArray[np.int64] = ends  # of each sequence, in tokens from the start of the .bin
        self._check_pointers(index, HEAD.size + 4 * head.sequences)
        self._documents = self._checked_documents(index, head, HEAD.size + 12 * head.sequences)
        self._data = PositionalFile(self.bin_path)
        needed = (int(ends[-1]) if len(ends) else 0) * self.dtype.itemsize
        if self._data.size != needed:
            raise DataError(
                f"{self.bin_path}: {self._data.size} bytes, but {self.idx_path.name} describes {needed}: "
                f"{PREPROCESS_AGAIN}"
            )

    def _check_pointers(self, index: PositionalFile, offset: int) -> None:
        """The pointers must be where the sequences start, in bytes."""
        count, size = len(self), self.dtype.itemsize
        for first in range(0, count, NUMBERS_AT_ONCE):
            part = slice(first, min(first + NUMBERS_AT_ONCE, count))
            pointers = index.numbers("<i8", part.stop - first, offset + 8 * first)
            if not np.array_equal(pointers, (self._ends[part] - self.lengths[part]) * size):
                raise DataError(f"{self.idx_path}: its pointers do not fit its lengths: {PREPROCESS_AGAIN}")

    def _checked_documents(self, index: PositionalFile, head: IdxHeader, offset: int) -> npt.NDArray[np.int64] | None:
        """The document indices [documents + 1] after a check; None where each sequence is a document."""
        count = head.document_indices
        if count == head.sequences + 1 and all(
            np.array_equal(
                index.numbers("<i8", min(NUMBERS_AT_ONCE, count - first), offset + 8 * first),
                np.arange(first, min(first + NUMBERS_AT_ONCE, count)),
            )
            for first in range(0, count, NUMBERS_AT_ONCE)
        ):
            return None
        documents: npt.NDArray[np.int64] = index.numbers("<i8", count, offset)
        if (
            documents.size == 0
            or documents[0] != 0
            or documents[-1] != head.sequences
            or bool((documents[1:] < documents[:-1]).any())
        ):
            raise DataError(f"{self.idx_path}: its document indices do not fit its sequences: {PREPROCESS_AGAIN}")
        return documents

    @property
    def document_indices(self) -> npt.NDArray[np.int64]:
        """First sequence of each document, and the number of sequences [documents + 1]."""
        return np.arange(len(self) + 1, dtype=np.int64) if self._documents is None else self._documents

    def share_index(self, other: IndexedReader) -> None:
        """Keep one copy of the index in memory for two readers whose sequences have the same lengths."""
        self.lengths, self._ends = other.lengths, other._ends

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> npt.NDArray[Any]:
        """The tokens of one sequence, read from the file; read-only [its length].

        Raises:
            IndexError: there is no such sequence. Negative numbers are not taken.
            DataError: the file was truncated since it was opened, or cannot be read.
        """
        number = operator.index(number)
        if not 0 <= number < len(self):
            raise IndexError(f"{self.prefix}: sequence {number} of {len(self)}")
        length = int(self.lengths[number])
        start = int(self._ends[number]) - length
        return self._data.numbers(self.dtype.newbyteorder("<"), length, start * self.dtype.itemsize)
