"""Read the .bin/.idx pair of document files in memory that does not depend on the number of documents.

The index of 10 million documents has 200 MB. It is checked once in parts, and afterwards each part is read when it is
needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.idx_header import HEAD, PREPROCESS_AGAIN
from mindspeed_llm.indexed_dataset.indexed_reader import open_data, open_index

# Numbers of the index that are read at a time.
NUMBERS_AT_ONCE = 1 << 18
# Last tokens of documents are read with the tokens between them if a document has at most this many bytes on average.
BYTES_PER_READ = 1 << 13
BYTES_AT_ONCE = 1 << 23


class DocumentIndex:
    """Documents of one .bin/.idx pair. A document is one sequence, or several that are joined.

    Megatron-LM's preprocessing writes several sequences per document with --split-sentences, and documents without any
    token for empty texts.

    Args:
        prefix: path without .bin or .idx.

    Attributes:
        documents: number of documents, with those that have no tokens.
        documents_with_tokens: number of documents that have tokens.
        tokens: number of tokens of all documents.
        dtype: type of the tokens.

    Raises:
        DataError: A file is missing or damaged, or the files do not match each other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.idx_path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        self._index, self._head = open_index(self.idx_path)
        self.dtype = self._head.dtype
        self.documents = self._head.document_indices - 1
        self._lengths_at = HEAD.size
        self._pointers_at = HEAD.size + 4 * self._head.sequences
        self._documents_at = HEAD.size + 12 * self._head.sequences
        self.tokens, with_tokens = self._check_sequences()
        self._one_sequence_each = self._check_documents()
        if not self._one_sequence_each:
            with_tokens = sum(int(np.count_nonzero(self.lengths(*part))) for part in self.parts())
        self.documents_with_tokens = with_tokens
        self._data = open_data(self.bin_path, self.idx_path, self.tokens * self.dtype.itemsize)

    def parts(self, size: int = NUMBERS_AT_ONCE) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of consecutive ranges of at most `size` documents that cover all of them."""
        for first in range(0, self.documents, size):
            yield first, min(first + size, self.documents)

    def lengths(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return the number of tokens of documents first … last − 1; int64 [last - first]."""
        if self._one_sequence_each:
            return self._sequence_lengths(first, last).astype(np.int64)
        bounds = self._document_bounds(first, last)
        ends = np.zeros(int(bounds[-1] - bounds[0]) + 1, np.int64)
        np.cumsum(self._sequence_lengths(int(bounds[0]), int(bounds[-1])), out=ends[1:])
        lengths: npt.NDArray[np.int64] = np.diff(ends[bounds - bounds[0]])
        return lengths

    def start(self, document: int) -> int:
        """Return the offset of a document in the .bin file, in tokens."""
        sequence = document if self._one_sequence_each else int(self._document_bounds(document, document)[0])
        if sequence == self._head.sequences:
            return self.tokens
        return int(self._index.numbers("<i8", 1, self._pointers_at + 8 * sequence)[0]) // self.dtype.itemsize

    def read(self, start: int, count: int) -> npt.NDArray[Any]:
        """Read tokens of the .bin file; read-only [count].

        Args:
            start: offset of the first token, in tokens.
            count: number of tokens.

        Raises:
            DataError: The file was truncated after it was opened, or cannot be read.
        """
        size = self.dtype.itemsize
        return self._data.numbers(self.dtype.newbyteorder("<"), count, start * size)

    def last_tokens(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return the last token of documents first … last − 1, and −1 where a document has none; int64 [last - first].

        Raises:
            DataError: The file was truncated after it was opened, or cannot be read.
        """
        lengths = self.lengths(first, last)
        begin = self.start(first)
        ends = begin + np.cumsum(lengths)
        found = np.full(last - first, -1, np.int64)
        filled = np.flatnonzero(lengths)
        if len(filled) == 0:
            return found
        if (int(ends[-1]) - begin) * self.dtype.itemsize > BYTES_PER_READ * len(filled):
            found[filled] = [int(self.read(end - 1, 1)[0]) for end in ends[filled].tolist()]
            return found
        at_once = BYTES_AT_ONCE // self.dtype.itemsize
        for start in range(begin, int(ends[-1]), at_once):
            tokens = self.read(start, min(at_once, int(ends[-1]) - start))
            some = filled[slice(*np.searchsorted(ends[filled], [start + 1, start + len(tokens) + 1]))]
            found[some] = tokens[ends[some] - 1 - start]
        return found

    def _sequence_lengths(self, first: int, last: int) -> npt.NDArray[np.int32]:
        lengths: npt.NDArray[np.int32] = self._index.numbers("<i4", last - first, self._lengths_at + 4 * first)
        return lengths

    def _document_bounds(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return the first sequence of documents first … last; int64 [last - first + 1]."""
        bounds: npt.NDArray[np.int64] = self._index.numbers("<i8", last - first + 1, self._documents_at + 8 * first)
        return bounds

    def _check_sequences(self) -> tuple[int, int]:
        """Check lengths and pointers; return the number of tokens and of sequences that have tokens."""
        tokens = with_tokens = 0
        for first in range(0, self._head.sequences, NUMBERS_AT_ONCE):
            last = min(first + NUMBERS_AT_ONCE, self._head.sequences)
            lengths = self._sequence_lengths(first, last)
            if int(lengths.min()) < 0:
                raise DataError(f"{self.idx_path}: a sequence of negative length: {PREPROCESS_AGAIN}")
            ends = tokens + np.cumsum(lengths, dtype=np.int64)
            pointers = self._index.numbers("<i8", last - first, self._pointers_at + 8 * first)
            if not np.array_equal(pointers, (ends - lengths) * self.dtype.itemsize):
                raise DataError(f"{self.idx_path}: its pointers do not match its lengths: {PREPROCESS_AGAIN}")
            tokens = int(ends[-1])
            with_tokens += int(np.count_nonzero(lengths))
        return tokens, with_tokens

    def _check_documents(self) -> bool:
        """Check the document indices; return whether each document is one sequence."""
        head = self._head
        one_each = head.document_indices == head.sequences + 1
        reached = 0
        for first in range(0, head.document_indices, NUMBERS_AT_ONCE):
            last = min(first + NUMBERS_AT_ONCE, head.document_indices)
            bounds = self._index.numbers("<i8", last - first, self._documents_at + 8 * first)
            falls = int(bounds[0]) < reached or bool((bounds[1:] < bounds[:-1]).any())
            if falls or (first == 0 and bounds[0] != 0):
                raise DataError(f"{self.idx_path}: its document indices do not match its sequences: {PREPROCESS_AGAIN}")
            one_each = one_each and np.array_equal(bounds, np.arange(first, last))
            reached = int(bounds[-1])
        if head.document_indices == 0 or reached != head.sequences:
            raise DataError(f"{self.idx_path}: its document indices do not match its sequences: {PREPROCESS_AGAIN}")
        return one_each
