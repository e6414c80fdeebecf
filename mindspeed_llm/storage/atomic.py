"""Files that are replaced as a whole: a reader sees the old content or the new one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Put a file in place whole: written beside, flushed to the disk, renamed.

    Raises:
        OSError: as the operating system says it; the old file is then still there.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush renames in `directory` to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class TextFile:
    """A small file that is replaced in two steps: a reader sees the old text or the new one.

    Attributes:
        path: of the file.
        beside: where its new text is made ready.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beside = path.with_name(path.name + ".tmp")

    def prepare(self, text: str) -> None:
        """Write the new text beside, and bring it to the disk."""
        with self.beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def replace(self) -> None:
        """Let the new text take the old one's place, and bring that to the disk."""
        self.beside.replace(self.path)
        flush_folder(self.path.parent)


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old text or the new one."""
    file = TextFile(path)
    file.prepare(text)
    file.replace()


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a rename outlives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
