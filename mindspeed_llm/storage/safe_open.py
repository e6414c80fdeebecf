"""Opening files that may come from strangers: a name in their folder may be that of a pipe or a device."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def regular_file_opener(path: str, flags: int) -> int:
    """An `opener` for `open` that opens nothing but files: a pipe would wait for its writer, a device never end.

    Raises:
        OSError: it is not a file.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return handle


def read_file_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: it cannot be read, or is not a file.
    """
    with open(path, "rb", opener=regular_file_opener) as file:
        return file.read()


def read_file_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        OSError: it cannot be read, or is not a file.
        ValueError: it is not UTF-8.
    """
    return read_file_bytes(path).decode("utf-8")
