"""Read files at given offsets with pread, so that a file which is truncated during a run causes an error with its name.

A memory map of such a file would end the process with SIGBUS and without a message.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_llm.errors import DataError

# Maximum number of open descriptors of these files. 1,024 is a common limit for all open files of a process.
MAX_OPEN = 256


class PositionalFile:
    """File that is read at given offsets. Several threads and forked processes may read at the same time.

    The descriptor stays open, so a file that is replaced during the run is read in its old state. A process with more
    than MAX_OPEN of these files closes the descriptor that was opened first. The next read of that file opens it
    again, and raises an error if it was replaced.

    Args:
        path: path of a regular file.

    Attributes:
        path: path of the file.
        size: size in bytes when the file was first opened.

    Raises:
        DataError: The file is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: _Descriptor | None = None
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise DataError(f"{path}: cannot be read: not a file")
            status = os.fstat(self._open().number)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; check the prefix, or run preprocess_data.py") from None
        except OSError as error:
            raise _unreadable(path, error) from error
        self.size = status.st_size
        self._identity = status.st_dev, status.st_ino

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes.

        Args:
            offset: offset of the first byte.
            count: number of bytes.

        Raises:
            DataError: The file is too short, was replaced, or cannot be read.
        """
        try:
            # The local reference keeps the descriptor open, even if another thread evicts it during the read.
            descriptor = self._descriptor or self._reopen()
            data = os.pread(descriptor.number, count, offset)
            # pread may return fewer bytes than requested, for example on Linux above 2 GiB.
            while len(data) < count:
                more = os.pread(descriptor.number, count - len(data), offset + len(data))
                if not more:
                    raise self._truncated(descriptor)
                data += more
        except OSError as error:
            raise _unreadable(self.path, error, f" at byte {offset:,}") from error
        return data

    def numbers(self, dtype: npt.DTypeLike, count: int, offset: int) -> npt.NDArray[Any]:
        """Read an array of numbers.

        Args:
            dtype: type of the numbers.
            count: number of numbers.
            offset: offset of the first number in bytes.

        Returns:
            Read-only array [count].

        Raises:
            DataError: As for `read`.
        """
        dtype = np.dtype(dtype)
        return np.frombuffer(self.read(offset, count * dtype.itemsize), dtype)

    def _open(self) -> _Descriptor:
        # Without a lock, because a forked process might inherit it in the locked state. If two threads open the file at
        # the same time, both descriptors are valid, and each is closed with its last reference.
        opened = self._descriptor = _Descriptor(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        _opened_files.append(weakref.ref(self))
        while len(_opened_files) > MAX_OPEN:
            oldest = _opened_files.popleft()()
            if oldest is not None:
                oldest._descriptor = None
        return opened

    def _reopen(self) -> _Descriptor:
        """Open the file again after its descriptor was closed; raise a DataError if it was replaced."""
        opened = self._open()
        status = os.fstat(opened.number)
        if (status.st_dev, status.st_ino) != self._identity:
            self._descriptor = None
            raise DataError(f"{self.path}: was replaced by another file while it was in use; start again")
        return opened

    def _truncated(self, descriptor: _Descriptor) -> DataError:
        return DataError(
            f"{self.path}: {os.fstat(descriptor.number).st_size:,} bytes, but {self.size:,} when it was opened: it was "
            "truncated while it was in use; copy it again or run preprocess_data.py again, then start again"
        )


class _Descriptor:
    """Open file descriptor that is closed with its last reference. A thread that reads holds a reference."""

    def __init__(self, number: int) -> None:
        self.number = number

    # The default argument keeps os.close available at interpreter exit, when module globals may already be None.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


# Weak references: the queue must not keep files open that nobody uses any more.
_opened_files: deque[weakref.ref[PositionalFile]] = deque()


def _unreadable(path: Path, error: OSError, where: str = "") -> DataError:
    return DataError(f"{path}: cannot be read{where}: {error.strerror or error}")
