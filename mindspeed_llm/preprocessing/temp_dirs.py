"""Folders that a run makes for itself, and takes away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindspeed_llm.storage.disk_errors import disk_errors

try:
    import fcntl
except ImportError:  # not a POSIX system: what killed runs left is not found again
    fcntl = None  # type: ignore[assignment]

MAKING = ".making-"


@contextlib.contextmanager
def remove_new_dirs_on_failure(directory: Path) -> Iterator[None]:
    """Takes away again, if the run fails, the directories that it made for its output."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()  # fails, as it should, on one that holds something
        raise


@contextlib.contextmanager
def temp_dir_in(directory: Path) -> Iterator[Path]:
    """A folder of its own in a directory that many runs share, also from other machines and containers.

    Beside it lies a lock that the run holds: one that nobody holds is of a killed run, and goes with its folder.
    """
    with remove_new_dirs_on_failure(directory):
        with disk_errors(directory, "--cache-dir"):
            directory.mkdir(parents=True, exist_ok=True)
            _sweep(directory)
            handle, name = tempfile.mkstemp(prefix=MAKING, suffix=".lock", dir=directory)
            lock, folder = Path(name), Path(name.removesuffix(".lock"))
            _locked(handle)
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(handle)


def _sweep(directory: Path) -> None:
    for folder in directory.glob(f"{MAKING}*"):
        if not folder.is_dir():
            continue
        lock = folder.with_name(f"{folder.name}.lock")
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR)
            try:
                if _locked(handle):
                    shutil.rmtree(folder, ignore_errors=True)
                    lock.unlink()
            finally:
                os.close(handle)


def _locked(handle: int) -> bool:
    """Whether the lock could be had, and is held now."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
