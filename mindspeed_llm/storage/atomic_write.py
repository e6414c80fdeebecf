"""Replace files and directories atomically: a reader sees the old or the new content, even after a kill.

New content is written to a temporary name in the same directory, flushed to the disk and renamed. Only the package
`storage` calls os.fsync and renames files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO


def partial_path(path: Path) -> Path:
    """Return the temporary name of a file that only one process writes at a time.

    The name is always the same, so that the next writer overwrites what a killed process has left.
    """
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def atomic_file(path: Path, shared: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block ends, and is removed when the block raises.

    Args:
        path: the file to replace. It keeps its old content until the block ends.
        shared: several processes or threads may write this path at the same time, so each uses its own temporary name.
        durable: flush to the disk before and after the rename. Without it, a power failure may leave an empty file.

    Yields:
        The temporary file, open for writing in binary mode.

    Raises:
        OSError: The operating system reports an error. The old file is unchanged.
    """
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.part")
    beside = own if shared else partial_path(path)
    try:
        with beside.open("wb") as file:
            yield file
            if durable:
                # Before the rename: a file system may write the new name to the disk earlier than the data, and after
                # a power failure the name would refer to an empty file.
                flush(file)
        rename(beside, path)
    except BaseException:  # KeyboardInterrupt too: no temporary file is left
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if durable:
        # Some file systems cannot flush a directory. The file itself is already complete and renamed.
        with contextlib.suppress(OSError):
            flush_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of a file atomically, and flush it to the disk.

    Raises:
        OSError: The operating system reports an error. The old file is unchanged.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Create a temporary directory that replaces `target` when the block ends, and is removed when the block raises.

    Args:
        target: the directory to replace or create.

    Yields:
        The temporary directory, next to `target`.

    Raises:
        OSError: The operating system reports an error.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        yield beside
        # A rename cannot replace a directory that has files, so the old one is renamed first and removed at the end.
        replaced = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            rename(target, replaced)
        rename(beside, target)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Rename a file or a directory within one file system. A file at `target` is replaced atomically."""
    source.replace(target)


def flush(file: IO[bytes] | IO[str]) -> None:
    """Write the buffers of an open file, and wait until its data is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the entries of a directory are on the disk, so that a rename survives a power failure.

    Raises:
        OSError: The directory cannot be read, or the file system does not support this.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rewrite(descriptor: int, content: bytes) -> None:
    """Overwrite an open file from its first byte, and wait until the data is on the disk.

    The file is not truncated: new content must be at least as long as the old content.

    Args:
        descriptor: of a file that is open for writing.
        content: the new content.
    """
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)
