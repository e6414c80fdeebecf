"""Write one .bin/.idx pair and compute its SHA-256 while writing."""

from __future__ import annotations

from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.indexed_dataset.idx_header import CODE_OF_DTYPE, sequence_pointers, write_idx_header
from mindspeed_llm.storage.hashing import FileDigest, HashingFile

# Short sequences are collected and written together, because a system call per sequence would be slow.
BUFFERED_BYTES = 1 << 22


class IndexedWriter:
    """Write sequences to PREFIX.bin and PREFIX.idx; each sequence is one document.

        with IndexedWriter(prefix) as out:
            out.add(tokens)

    The end of the block completes the files. An exception in the block removes them.

    Args:
        prefix: path without .bin or .idx.
        dtype: type of the tokens.

    Attributes:
        files: size and hash of both files by name; empty until they are complete.

    Raises:
        DataError: The disk is full, or the path cannot be written.
    """

    def __init__(self, prefix: str | Path, dtype: npt.DTypeLike = np.int32) -> None:
        self.dtype = np.dtype(dtype)
        assert self.dtype in CODE_OF_DTYPE, f"Megatron's format has no {self.dtype}"
        self.bin_path, self.idx_path = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        self.files: dict[str, FileDigest] = {}
        self._lengths = array("i")
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._bin = HashingFile(self.bin_path)
        self._idx: HashingFile | None = None

    def add(self, tokens: npt.NDArray[Any]) -> None:
        """Write one sequence; integers [length]."""
        assert tokens.ndim == 1
        self._lengths.append(len(tokens))
        self._write(tokens)

    def add_rows(self, tokens: npt.NDArray[Any]) -> None:
        """Write several sequences of the same length; integers [sequences, length]."""
        assert tokens.ndim == 2
        self._lengths.extend([tokens.shape[1]] * tokens.shape[0])
        self._write(tokens)

    def add_sequences(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int32]) -> None:
        """Write several sequences that follow one another.

        Args:
            tokens: tokens of all sequences; integers [tokens].
            lengths: length of each sequence in tokens; int32 [sequences].
        """
        assert tokens.ndim == 1 and int(lengths.sum(dtype=np.int64)) == len(tokens)
        self._lengths.extend(lengths.tolist())
        self._write(tokens)

    def _write(self, tokens: npt.NDArray[Any]) -> None:
        if tokens.dtype != self.dtype:
            # astype wraps numbers that do not fit, so the result is compared with the original.
            converted = tokens.astype(self.dtype)
            assert np.array_equal(converted, tokens), f"tokens do not fit {self.dtype}"
            tokens = converted
        if tokens.nbytes >= BUFFERED_BYTES:
            self._flush()
            self._bin.write(np.ascontiguousarray(tokens).reshape(-1).view(np.uint8).data)
            return
        self._pending.append(tokens.tobytes())
        self._pending_bytes += tokens.nbytes
        if self._pending_bytes >= BUFFERED_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._bin.write(b"".join(self._pending))
        self._pending.clear()
        self._pending_bytes = 0

    def finish(self) -> dict[str, FileDigest]:
        """Write the index and close both files. Return their sizes and hashes by name."""
        if self.files:
            return self.files
        self._flush()
        lengths = np.asarray(self._lengths, np.int32)
        self._idx = HashingFile(self.idx_path)
        self._idx.write(write_idx_header(self.dtype, len(lengths)))
        self._idx.write(lengths.tobytes())
        self._idx.write(sequence_pointers(lengths, self.dtype.itemsize).tobytes())
        self._idx.write(np.arange(len(lengths) + 1, dtype=np.int64).tobytes())
        self.files = {self.bin_path.name: self._bin.finish(), self.idx_path.name: self._idx.finish()}
        return self.files

    def discard(self) -> None:
        """Close and remove both files."""
        self._bin.discard()
        if self._idx is not None:
            self._idx.discard()

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.finish()
        except BaseException:
            self.discard()
            raise
