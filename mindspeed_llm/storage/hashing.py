"""Compute size and SHA-256 of existing files, and of files while they are written."""

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
# hashlib releases the GIL, so threads hash in parallel. More threads than these only wait for the disk.
MAX_THREADS = 4


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal digits."""
    return sha256_of_blocks((data,))


def sha256_of_blocks(blocks: Iterable[bytes]) -> str:
    """Return the SHA-256 of the concatenated `blocks` in hexadecimal digits."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of a file.

    Attributes:
        size: in bytes.
        sha256: 64 hexadecimal digits in lower case.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, before_block: Callable[[], None] = lambda: None, flush_to_disk: bool = False) -> FileDigest:
        """Compute size and SHA-256 of a file.

        Args:
            path: the file to read.
            before_block: called before each block of `BYTES_AT_ONCE` bytes. An exception that it raises ends the
                reading.
            flush_to_disk: also wait until the file is on the disk.

        Returns:
            The digest of all bytes of the file.

        Raises:
            OSError: The file cannot be read or flushed.
        """
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        with path.open("rb", buffering=0) as file:
            before_block()
            while read := file.readinto(buffer):
                digest.update(buffer[:read])
                size += read
                before_block()
            if flush_to_disk:
                flush(file)
        return cls(size, digest.hexdigest())


def hash_files(folder: Path, names: Sequence[str], flush_to_disk: bool = False) -> dict[str, FileDigest]:
    """Compute size and SHA-256 of several files in parallel.

    Args:
        folder: the directory of the files.
        names: paths relative to `folder`.
        flush_to_disk: also wait until the files are on the disk.

    Returns:
        Name → digest.

    Raises:
        OSError: A file cannot be read or flushed.
    """
    with ThreadPoolExecutor(MAX_THREADS) as threads:
        digests = threads.map(lambda name: FileDigest.of(folder / name, flush_to_disk=flush_to_disk), names)
        return dict(zip(names, digests, strict=True))


class HashingFile:
    """A new file whose size and SHA-256 are computed while it is written, so that it is not read again.

    Args:
        path: the file to create or overwrite.

    Raises:
        DataError: The file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        with disk_errors(path):
            self._file: BinaryIO = path.open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`.

        Raises:
            DataError: The data cannot be written.
        """
        with disk_errors(self.path):
            rest = memoryview(data)
            # An unbuffered file may write fewer bytes than it is given.
            while rest:
                rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> FileDigest:
        """Flush the file to the disk and close it.

        Returns:
            Size and SHA-256 of the written bytes.

        Raises:
            DataError: The file cannot be flushed.
        """
        with disk_errors(self.path):
            flush(self._file)
            self._file.close()
        return FileDigest(self.size, self._hash.hexdigest())

    def discard(self) -> None:
        """Close and remove the file. Errors are ignored: an earlier error is the reason to discard it."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()
