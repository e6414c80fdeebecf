"""Format of .idx files, as in megatron.core.datasets.indexed_dataset. All numbers are little-endian.

    offset      content (n sequences)                            example: two documents of 3 and 2 tokens, int32
    0           magic, 9 bytes                                   MMIDIDX 00 00
    9           version, u64                                     1
    17          dtype code, u8                                   4
    18          number of sequences, u64                         2
    26          number of document indices, u64 (documents + 1)  3
    34          length of each sequence, i32                     3 2
    34 + 4 n    offset of each sequence in the .bin, i64, bytes  0 12
    34 + 12 n   first sequence of each document, i64, and n      0 1 2

The .bin file contains the tokens of all sequences without gaps.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEAD = struct.Struct("<9sQBQQ")

DTYPE_OF_CODE: dict[int, type[Any]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
CODE_OF_DTYPE: dict[np.dtype[Any], int] = {np.dtype(dtype): code for code, dtype in DTYPE_OF_CODE.items()}

PREPROCESS_AGAIN = "the file is damaged or was not written to its end; copy it again or run preprocess_data.py again"


class IdxHeader(NamedTuple):
    """Header of an .idx file.

    Attributes:
        dtype: type of the tokens.
        sequences: number of sequences.
        document_indices: number of document indices, which is the number of documents + 1.
    """

    dtype: np.dtype[Any]
    sequences: int
    document_indices: int

    @property
    def idx_size(self) -> int:
        """Expected size of the .idx file in bytes."""
        return HEAD.size + 12 * self.sequences + 8 * self.document_indices


def read_idx_header(path: Path, size: int, start: bytes) -> IdxHeader:
    """Parse and check the header of an .idx file.

    Args:
        path: path of the file, for error messages.
        size: size of the file in bytes.
        start: first bytes of the file, at least the header.

    Raises:
        DataError: The file is not an .idx file, is damaged, or contains no integers.
    """
    if len(start) < HEAD.size or start[: len(MAGIC)] != MAGIC:
        raise DataError(f"{path}: not a Megatron index file (.idx): {PREPROCESS_AGAIN}")
    _, version, code, sequences, document_indices = HEAD.unpack(start[: HEAD.size])
    if version != VERSION:
        raise DataError(f"{path}: index version {version}, this program reads {VERSION}: {PREPROCESS_AGAIN}")
    if code not in DTYPE_OF_CODE:
        raise DataError(f"{path}: unknown dtype code {code}: {PREPROCESS_AGAIN}")
    dtype = np.dtype(DTYPE_OF_CODE[code])
    if dtype.kind not in "iu":
        raise DataError(f"{path}: contains {dtype} numbers; tokens must be integers")
    head = IdxHeader(dtype, sequences, document_indices)
    if head.idx_size != size:
        raise DataError(
            f"{path}: {size} bytes, but {sequences} sequences in {document_indices - 1} documents "
            f"take {head.idx_size}: {PREPROCESS_AGAIN}"
        )
    return head


def write_idx_header(dtype: np.dtype[Any], sequences: int) -> bytes:
    """Return the header of an .idx file in which each document is one sequence."""
    return HEAD.pack(MAGIC, VERSION, CODE_OF_DTYPE[dtype], sequences, sequences + 1)


def sequence_pointers(lengths: npt.NDArray[np.int32], itemsize: int) -> npt.NDArray[np.int64]:
    """Return the offset of each sequence in the .bin file in bytes; int64 [sequences].

    Args:
        lengths: length of each sequence in tokens; int32 [sequences].
        itemsize: size of a token in bytes.
    """
    pointers = np.zeros(len(lengths), np.int64)
    # int64, because a .bin file of 8 GiB already has 2³¹ int32 tokens.
    np.cumsum(lengths[:-1], dtype=np.int64, out=pointers[1:])
    return pointers * itemsize
