"""Size and SHA-256 of files, of those that lie there and of those that are being written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mindspeed_llm.storage.atomic_write import flush
from mindspeed_llm.storage.disk_errors import disk_errors

BYTES_AT_ONCE = 1 << 20
MOST_THREADS = 4  # hashing lets other threads run; more than these wait for the disk


def sha256_of(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal digits."""
    return sha256_of_blocks((data,))


def sha256_of_blocks(blocks: Iterable[bytes]) -> str:
    """SHA-256 of `blocks` one after the other, in hexadecimal digits."""
    found = hashlib.sha256()
    for block in blocks:
        found.update(block)
    return found.hexdigest()


@dataclass(frozen=True)
class FileDigest:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, before_block: Callable[[], None] = lambda: None, flush_to_disk: bool = False) -> FileDigest:
        """Read a file and compute them.

        Args:
            path: of the file.
            before_block: called before each BYTES_AT_ONCE are read; what it raises ends the reading.
            flush_to_disk: also wait until the disk has the file.

        Raises:
            OSError: from the operating system.
        """
        found, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        with path.open("rb", buffering=0) as file:
            before_block()
            while read := file.readinto(buffer):
                found.update(buffer[:read])
                size += read
                before_block()
            if flush_to_disk:
                flush(file)
        return cls(size, found.hexdigest())


def hash_files(folder: Path, names: Sequence[str], flush_to_disk: bool = False) -> dict[str, FileDigest]:
    """Size and SHA-256 of files of a folder by name, several read at a time.

    Raises:
        OSError: from the operating system.
    """
    with ThreadPoolExecutor(MOST_THREADS) as threads:
        facts = threads.map(lambda name: FileDigest.of(folder / name, flush_to_disk=flush_to_disk), names)
        return dict(zip(names, facts, strict=True))


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

    def finish(self) -> FileDigest:
        """Flush to the disk and close.

        Returns:
            the size and hash of what was written.
        """
        with disk_errors(self.path):
            flush(self._file)
            self._file.close()
        return FileDigest(self.size, self._hash.hexdigest())

    def discard(self) -> None:
        """Close and remove."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()
