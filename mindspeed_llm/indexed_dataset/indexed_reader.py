"""Read one .bin/.idx pair: the index is read and checked at once, the sequences on access."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.idx_header import HEAD, PREPROCESS_AGAIN, IdxHeader, read_idx_header
from mindspeed_llm.indexed_dataset.positional_file import PositionalFile

# Numbers of an index that are read at a time. The complete index of 100 million sequences has 2 GB.
NUMBERS_AT_ONCE = 1 << 20


def open_index(path: Path) -> tuple[PositionalFile, IdxHeader]:
    """Open an .idx file and check its header.

    Args:
        path: path of the file.

    Raises:
        DataError: The file is missing, or its header is damaged.
    """
    index = PositionalFile(path)
    return index, read_idx_header(path, index.size, index.read(0, min(HEAD.size, index.size)))


def open_data(bin_path: Path, idx_path: Path, needed: int) -> PositionalFile:
    """Open a .bin file and compare its size with the index.

    Args:
        bin_path: path of the file.
        idx_path: path of its index, for error messages.
        needed: size in bytes according to the index.

    Raises:
        DataError: The file is missing, or its size differs.
    """
    data = PositionalFile(bin_path)
    if data.size != needed:
        raise DataError(f"{bin_path}: {data.size} bytes, but {needed} according to {idx_path.name}: {PREPROCESS_AGAIN}")
    return data


class IndexedReader:
    """Sequences of one .bin/.idx pair.

    The constructor checks every number of the index, so that a damaged index cannot cause a crash or wrong tokens
    later. The tokens are checked by `hash_verification.verify_files`. The reader uses 12 bytes of memory per sequence.

    Args:
        prefix: path without .bin or .idx.

    Attributes:
        lengths: length of each sequence in tokens; int32 [sequences].
        dtype: type of the tokens.

    Raises:
        DataError: A file is missing or damaged, or the files do not match each other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.idx_path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        index, head = open_index(self.idx_path)
        self.dtype = head.dtype
        self.lengths: npt.NDArray[np.int32] = index.numbers("<i4", head.sequences, HEAD.size)
        if self.lengths.size and int(self.lengths.min()) < 0:
            raise DataError(f"{self.idx_path}: a sequence of negative length: {PREPROCESS_AGAIN}")
        ends = np.cumsum(self.lengths, dtype=np.int64)
        self._ends: npt.NDArray[np.int64] = ends  # end of each sequence, in tokens from the start of the .bin
        self._check_pointers(index, HEAD.size + 4 * head.sequences)
        self._documents = self._checked_documents(index, head, HEAD.size + 12 * head.sequences)
        needed = (int(ends[-1]) if len(ends) else 0) * self.dtype.itemsize
        self._data = open_data(self.bin_path, self.idx_path, needed)

    def _check_pointers(self, index: PositionalFile, offset: int) -> None:
        """Check that the pointers are the offsets of the sequences in bytes."""
        count, size = len(self), self.dtype.itemsize
        for first in range(0, count, NUMBERS_AT_ONCE):
            part = slice(first, min(first + NUMBERS_AT_ONCE, count))
            pointers = index.numbers("<i8", part.stop - first, offset + 8 * first)
            if not np.array_equal(pointers, (self._ends[part] - self.lengths[part]) * size):
                raise DataError(f"{self.idx_path}: its pointers do not match its lengths: {PREPROCESS_AGAIN}")

    def _checked_documents(self, index: PositionalFile, head: IdxHeader, offset: int) -> npt.NDArray[np.int64] | None:
        """Check the document indices; return them, int64 [documents + 1], or None if each sequence is a document."""
        # Files of this package have one sequence per document. Comparing in parts and storing nothing saves 8 bytes per
        # sequence.
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
            raise DataError(f"{self.idx_path}: its document indices do not match its sequences: {PREPROCESS_AGAIN}")
        return documents

    @property
    def document_indices(self) -> npt.NDArray[np.int64]:
        """First sequence of each document, and the number of sequences; int64 [documents + 1]."""
        return np.arange(len(self) + 1, dtype=np.int64) if self._documents is None else self._documents

    def share_index(self, other: IndexedReader) -> None:
        """Use the index of another reader, whose sequences have the same lengths, to save memory.

        Args:
            other: reader whose arrays [sequences] are used.
        """
        self.lengths, self._ends = other.lengths, other._ends

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> npt.NDArray[Any]:
        """Read the tokens of one sequence from the file; read-only [length].

        Raises:
            IndexError: The number is negative or not below the number of sequences.
            DataError: The file was truncated after it was opened, or cannot be read.
        """
        number = operator.index(number)
        if not 0 <= number < len(self):
            raise IndexError(f"{self.prefix}: sequence {number} of {len(self)}")
        length = int(self.lengths[number])
        start = int(self._ends[number]) - length
        return self._data.numbers(self.dtype.newbyteorder("<"), length, start * self.dtype.itemsize)
