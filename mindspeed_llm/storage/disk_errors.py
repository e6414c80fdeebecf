"""Turn disk errors into errors that a user can act on, and check the free space of a disk."""

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
    """Convert an OSError of the block into a DataError that tells the user what to do.

    Args:
        path: the path for the message.
        flag: the flag that specifies `path`.

    Raises:
        DataError: The block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = f"no space left on the disk; free some space, or choose another path with {flag}"
        else:
            advice = f"cannot be written ({error.strerror or error}); choose another path with {flag}"
        raise DataError(f"{path}: {advice}") from error


def check_free_space(folder: Path, needed: int) -> None:
    """Check that a disk has enough free space before a large write begins.

    Args:
        folder: a directory on the disk.
        needed: size of the write in bytes.

    Raises:
        OSError: The free space is smaller than `needed`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        # The need is rounded up and the free space down, so that the message never reads "5 needed, 5 free".
        raise OSError(f"{-(-needed // MIB):,} MiB are needed, {free // MIB:,} MiB are free")


def format_free_space(folder: Path) -> str:
    """Return the free space of the disk of a directory as text for a message; if unknown, the error instead."""
    try:
        return f"{shutil.disk_usage(folder).free // MIB:,} MiB are free on that disk"
    except OSError as error:
        return str(error)
