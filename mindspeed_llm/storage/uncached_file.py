"""Files larger than memory, written or read once: they leave no trace in the system's file cache.

A plain write of 15 GB fills the cache with pages that nobody reads again. The kernel has to find a new page for every
4 kB, throws out what others had cached, and stops the writer when too many pages wait for the disk. Here a file is put
on the disk while it is written, a stretch at a time, and its pages are given back at once, to be used again.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mindspeed_llm.storage.atomic_write import flush

STRETCH = 64 << 20  # bytes: enough to keep a disk busy, small beside any memory


def drop_cached_pages(path: Path) -> None:
    """Give back the cached pages of a file, but for those that are mapped or not yet written; only advice."""
    if not hasattr(os, "posix_fadvise"):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


class StreamedFile(io.FileIO):
    """A file that goes to the disk while it is written, one stretch behind the writer.

    Args:
        path: of the file.
        mode: "wb" for a new one, "r+b" for one that is there.

    Raises:
        OSError: from `write` or `close`, also what went wrong with an earlier stretch.
    """

    def __init__(self, path: Path, mode: str = "wb") -> None:
        super().__init__(path, mode)
        self._worker = ThreadPoolExecutor(1)
        self._behind: Future[None] | None = None
        self._waiting = 0

    def write(self, data: Any) -> int:
        """Write all of it; FileIO alone may write less than it is given."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), STRETCH):
            part = view[start : start + STRETCH]
            while part:
                count = super().write(part)
                part = part[count:]
                self._waiting += count
            if self._waiting >= STRETCH:
                self._send()
        return len(view)

    def _send(self) -> None:
        if self._behind is not None:
            self._behind.result()  # no more than two stretches are ever in memory
        self._behind, self._waiting = self._worker.submit(self._to_disk), 0

    def _to_disk(self) -> None:
        flush(self)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Wait until everything is on the disk."""
        if self.closed:
            return
        try:
            self._send()
            self._worker.shutdown()
            assert self._behind is not None
            self._behind.result()
        finally:
            super().close()


class FileSection(io.RawIOBase):
    """A stretch of a file as a file of its own, read straight into the reader's memory.

    Args:
        file: opened for reading, and for nobody else.
        start, length: of the stretch, in bytes.
    """

    def __init__(self, file: io.RawIOBase, start: int, length: int) -> None:
        self._file, self._start, self.length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        if at < 0:
            raise OSError("a place before the beginning")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(self.length - self._at, 0)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count
