"""Errors of the disk as errors that a user can act on, and how much room there is."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mindspeed_llm.errors import DataError

MIB = 1 << 20


@contextmanager
def disk_errors(path: Path, flag: str = "--output-prefix") -> Iterator[None]:
    """Raise an OSError as a DataError with a way out.

    Args:
        path: that the message names.
        flag: that names `path`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"no space left on the disk; free some, or choose another place with {flag}"
        else:
            advice = f"cannot be written ({error.strerror or error}); choose another place with {flag}"
        raise DataError(f"{path}: {advice}") from error


def check_free_space(folder: Path, needed: int) -> None:
    """Refuse to begin what does not fit on the disk of a folder.

    What is needed is rounded up and what is free is rounded down, so that the message never contradicts itself.

    Args:
        folder: on the disk.
        needed: bytes.

    Raises:
        OSError: there is less room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"{-(-needed // MIB):,} MiB are needed, {free // MIB:,} MiB are free")


def format_free_space(folder: Path) -> str:
    """What is free on the disk of a folder, for a message."""
    try:
        return f"{shutil.disk_usage(folder).free // MIB:,} MiB are free on that disk"
    except OSError as error:
        return str(error)
