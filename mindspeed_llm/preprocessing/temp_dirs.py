"""Temporary directories of a run, removed at its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindspeed_llm.interrupts import hold_interrupts
from mindspeed_llm.storage.disk_errors import disk_errors

try:
    import fcntl
except ImportError:  # not a POSIX system: directories of killed runs are not removed there
    fcntl = None  # type: ignore[assignment]

# Prefix of the directories and their lock files.
MAKING = ".making-"


@contextlib.contextmanager
def remove_new_dirs_on_failure(directory: Path) -> Iterator[None]:
    """Remove the directories that are created inside the block if the block fails.

    Args:
        directory: output directory; it and its missing parents are removed if they are empty.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()  # fails on a directory with content, as intended
        raise


@contextlib.contextmanager
def temp_dir_in(directory: Path) -> Iterator[Path]:
    """Create a temporary directory inside a directory that many runs share, also on other machines.

    A lock file beside it is locked as long as the run lives. A lock file without a lock belongs to a killed run and is
    removed together with its directory.

    Args:
        directory: the shared directory (--cache-dir); created if it does not exist.

    Yields:
        the temporary directory, removed at the end of the block.

    Raises:
        DataError: `directory` cannot be written to.
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
            with hold_interrupts():
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):
                    lock.unlink()
                os.close(handle)


def _sweep(directory: Path) -> None:
    """Remove the temporary directories of killed runs."""
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
    """Try to lock a file. Return whether this process holds the lock now."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
