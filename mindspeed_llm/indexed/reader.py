"""Read one .bin/.idx pair, memory-mapped, after every check that its index allows."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed.layout import HEAD, PREPROCESS_AGAIN, Head, pointers_of, read_head


class IndexedReader:
    """The sequences of one .bin/.idx pair.

    Every number of the index is checked here, so that no damage to it shows later as a crash or as wrong tokens;
    the tokens themselves are checked by `PackedFiles.verify_hashes`.

    Args:
        prefix: path without .bin or .idx.

    Attributes:
        lengths: of each sequence, in tokens [sequences].
        dtype: of the tokens.
        document_indices: first sequence of each document, and the number of sequences [documents + 1].

    Raises:
        DataError: a file is missing, damaged, or does not fit the other.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self.idx_path, self.bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        index = _mapped(self.idx_path)
        head = read_head(self.idx_path, index.size, index[: HEAD.size].tobytes())
        count = head.sequences
        self.dtype = head.dtype
        self.lengths: npt.NDArray[np.int32] = np.frombuffer(index, "<i4", count, HEAD.size)
        pointers = np.frombuffer(index, "<i8", count, HEAD.size + 4 * count)
        self.document_indices: npt.NDArray[np.int64] = np.frombuffer(
            index, "<i8", head.document_indices, HEAD.size + 12 * count
        )
        self._check_index(head, pointers)
        data = _mapped(self.bin_path)
        needed = int(self.lengths.sum(dtype=np.int64)) * self.dtype.itemsize
        if data.size != needed:
            raise DataError(
                f"{self.bin_path}: {data.size} bytes, but {self.idx_path.name} describes {needed}: {PREPROCESS_AGAIN}"
            )
        self._tokens: npt.NDArray[Any] = np.frombuffer(data, self.dtype.newbyteorder("<"))
        self._starts: npt.NDArray[np.int64] = pointers // self.dtype.itemsize

    def _check_index(self, head: Head, pointers: npt.NDArray[np.int64]) -> None:
        """Lengths, pointers and document indices must fit one another."""
        documents = self.document_indices
        if self.lengths.size and int(self.lengths.min()) < 0:
            raise DataError(f"{self.idx_path}: a sequence of negative length: {PREPROCESS_AGAIN}")
        if not np.array_equal(pointers, pointers_of(self.lengths, self.dtype.itemsize)):
            raise DataError(f"{self.idx_path}: its pointers do not fit its lengths: {PREPROCESS_AGAIN}")
        if (
            documents.size == 0
            or documents[0] != 0
            or documents[-1] != head.sequences
            or bool((documents[1:] < documents[:-1]).any())
        ):
            raise DataError(f"{self.idx_path}: its document indices do not fit its sequences: {PREPROCESS_AGAIN}")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> npt.NDArray[Any]:
        """The tokens of one sequence [its length], a read-only view of the memory map.

        Raises:
            IndexError: there is no such sequence. Negative numbers are not taken.
        """
        number = operator.index(number)
        if not 0 <= number < len(self):
            raise IndexError(f"{self.prefix}: sequence {number} of {len(self)}")
        start = self._starts[number]
        return self._tokens[start : start + self.lengths[number]]


def _mapped(path: Path) -> npt.NDArray[np.uint8]:
    """The bytes of a file as a read-only memory map [size]."""
    try:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.zeros(0, np.uint8)
        return np.asarray(np.memmap(path, np.uint8, mode="r"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; check the prefix (without _packed_...), or run preprocess_data.py"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
