"""Replace files and folders as a whole: a reader sees the old content or the new one, also after a kill.

Everything is written beside its place, flushed to the disk and renamed. Only this package calls os.fsync and renames.
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
    """Where a file is written that only one process writes at a time: after a kill the next one overwrites it."""
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def atomic_file(path: Path, shared: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """Write a file that takes its place when the block ends, and that is removed when the block raises.

    Args:
        path: of the file; what lies there stays until then.
        shared: several processes or threads may write this path at a time, so each writes under a name of its own.
        durable: flush to the disk before and after the renaming. Without it a loss of power may leave an empty file.

    Raises:
        OSError: from the operating system; the old file is then still there.
    """
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.part")
    beside = own if shared else partial_path(path)
    try:
        with beside.open("wb") as file:
            yield file
            if durable:
                flush(file)
        rename(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    if durable:
        with contextlib.suppress(OSError):  # not every file system can
            flush_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Put a file in place whole: write it beside, flush it to the disk, rename it.

    Raises:
        OSError: from the operating system; the old file is then still there.
    """
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Make a folder beside `target` that takes its place when the block ends, and is removed when the block raises.

    Raises:
        OSError: from the operating system.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        beside.mkdir(parents=True)
        yield beside
        replaced = target.with_name(f".{target.name}.{os.getpid()}.old")
        if target.exists():
            rename(target, replaced)
        rename(beside, target)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Give a file or a folder another name on the same file system; a file at `target` is replaced."""
    source.replace(target)


def flush(file: IO[bytes] | IO[str]) -> None:
    """Write what is buffered of an open file, and wait until the disk has it."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, so that a rename outlives a loss of power.

    Raises:
        OSError: the folder cannot be read, or the file system cannot do it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rewrite(descriptor: int, content: bytes) -> None:
    """Overwrite an open file from its beginning, and wait until the disk has it. Its length does not shrink."""
    os.pwrite(descriptor, content, 0)
    os.fsync(descriptor)
