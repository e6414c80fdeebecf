"""Read files at positions, so that a file which is truncated meanwhile is an error that names it.

A memory map of such a file would end the process with SIGBUS, which names nothing.
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

# Descriptors that this process holds at a time; 1,024 is a common limit for everything a process has open.
MOST_OPEN = 256


class PositionalFile:
    """A file that is read at positions, by several threads at a time and by forked processes.

    The descriptor stays open, so a file that is replaced by another one meanwhile is read as it was. A process that
    holds more than MOST_OPEN of these files closes the descriptor that was opened first; the next read of that file
    opens it again, and refuses one that was replaced.

    Args:
        path: of a regular file.

    Attributes:
        size: in bytes, when it was opened first.

    Raises:
        DataError: the file is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: _Descriptor | None = None
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise DataError(f"{path}: cannot be read: not a file")
            status = os.fstat(self._opened().number)
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; check the prefix (without _packed_...), or run preprocess_data.py"
            ) from None
        except OSError as error:
            raise _unreadable(path, error) from error
        self.size = status.st_size
        self._identity = status.st_dev, status.st_ino

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`.

        Raises:
            DataError: the file ends before them, was replaced, or cannot be read.
        """
        try:
            descriptor = self._descriptor or self._opened_again()
            data = os.pread(descriptor.number, count, offset)
            while len(data) < count:
                more = os.pread(descriptor.number, count - len(data), offset + len(data))
                if not more:
                    raise self._truncated(descriptor)
                data += more
        except OSError as error:
            raise _unreadable(self.path, error, f" at byte {offset:,}") from error
        return data

    def numbers(self, dtype: npt.DTypeLike, count: int, offset: int) -> npt.NDArray[Any]:
        """`count` numbers of `dtype` from byte `offset`; read-only [count].

        Raises:
            DataError: as `read`.
        """
        dtype = np.dtype(dtype)
        return np.frombuffer(self.read(offset, count * dtype.itemsize), dtype)

    def _opened(self) -> _Descriptor:
        # No lock, which a forked process might inherit locked: what two threads open twice is closed with its last use.
        opened = self._descriptor = _Descriptor(os.open(self.path, os.O_RDONLY | os.O_CLOEXEC))
        _opened_files.append(weakref.ref(self))
        while len(_opened_files) > MOST_OPEN:
            first = _opened_files.popleft()()
            if first is not None:
                first._descriptor = None
        return opened

    def _opened_again(self) -> _Descriptor:
        opened = self._opened()
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
    """An open file descriptor, closed with the last reference: a thread that reads holds one."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


_opened_files: deque[weakref.ref[PositionalFile]] = deque()


def _unreadable(path: Path, error: OSError, where: str = "") -> DataError:
    return DataError(f"{path}: cannot be read{where}: {error.strerror or error}")
