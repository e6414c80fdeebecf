"""Open files from untrusted sources, where a name may refer to a pipe or a device."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def regular_file_opener(path: str, flags: int) -> int:
    """Open a regular file, and nothing else; for the argument `opener` of `open`.

    Reading a pipe could wait for a writer without end, and a device may never end.

    Args:
        path: the file to open.
        flags: from `open`.

    Returns:
        The file descriptor.

    Raises:
        OSError: `path` is not a regular file, or cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe already waits for its writer, before the type can be checked. The type is
    # checked on the open file, because the name could be replaced between a check and the opening.
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return handle


def read_file_bytes(path: Path) -> bytes:
    """Read all bytes of a regular file.

    Raises:
        OSError: The path cannot be read, or is not a regular file.
    """
    with open(path, "rb", opener=regular_file_opener) as file:
        return file.read()


def read_file_text(path: Path) -> str:
    """Read the text of a regular file in UTF-8.

    Raises:
        OSError: The path cannot be read, or is not a regular file.
        ValueError: The content is not valid UTF-8.
    """
    return read_file_bytes(path).decode("utf-8")
