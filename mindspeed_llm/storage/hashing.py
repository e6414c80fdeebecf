"""Size and SHA-256 of files, of those that lie there and of those that are being written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mindspeed_llm.storage.disk_errors import disk_errors

BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, before_block: Callable[[], None] = lambda: None) -> FileFacts:
        """Those of a file, which is read whole.

        Args:
            before_block: called before each BYTES_AT_ONCE are read; what it raises ends the reading.

        Raises:
            OSError: as the operating system says it.
        """
        found, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        with path.open("rb", buffering=0) as file:
            before_block()
            while read := file.readinto(buffer):
                found.update(buffer[:read])
                size += read
                before_block()
        return cls(size, found.hexdigest())


class HashingFile:
    """A file being written, its size and SHA-256 kept along the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        with disk_errors(path):
            self._file: BinaryIO = path.open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        with disk_errors(self.path):
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> FileFacts:
        """Flush to the disk and close.

        Returns:
            the size and hash of what was written.
        """
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
            self._file.close()
        return FileFacts(self.size, self._hash.hexdigest())

    def discard(self) -> None:
        """Close and remove."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()
