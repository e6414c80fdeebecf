"""Write and read files larger than memory without filling the page cache of the operating system.

A plain write of 15 GB fills the cache with pages that nobody reads again. The kernel allocates a new page for every
4 kB, evicts pages of other programs, and blocks the writer when too many pages wait for the disk. `StreamedFile`
flushes a file to the disk while it is written, section by section, and releases its pages at once for reuse.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mindspeed_llm.storage.atomic_write import flush

STRETCH = 64 << 20  # bytes of a section: enough to keep a disk busy, small compared with the memory of any machine


def drop_cached_pages(path: Path) -> None:
    """Advise the kernel to release the cached pages of a file.

    Pages that are mapped into memory, or not yet written to the disk, stay.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


class StreamedFile(io.FileIO):
    """A file that a second thread flushes to the disk while it is written, one section behind the writer.

    Args:
        path: the file to write.
        mode: "wb" for a new file, "r+b" for an existing file.

    Raises:
        OSError: `write` or `close` reports an error of the file system. It may be the error of an earlier section,
            which the other thread has flushed in the meantime.
    """

    def __init__(self, path: Path, mode: str = "wb") -> None:
        super().__init__(path, mode)
        self._worker = ThreadPoolExecutor(1)
        self._behind: Future[None] | None = None
        self._waiting = 0

    def write(self, data: Any) -> int:
        """Write all of `data`, any object with the buffer protocol, and return its size in bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), STRETCH):
            part = view[start : start + STRETCH]
            # FileIO may write fewer bytes than it is given.
            while part:
                count = super().write(part)
                part = part[count:]
                self._waiting += count
            if self._waiting >= STRETCH:
                self._send()
        return len(view)

    def _send(self) -> None:
        if self._behind is not None:
            # Wait for the section before: at most two sections are in memory, and its error is raised here.
            self._behind.result()
        self._behind, self._waiting = self._worker.submit(self._to_disk), 0

    def _to_disk(self) -> None:
        flush(self)  # first, because the kernel keeps pages that are not yet on the disk
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file, after all of it is on the disk."""
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
    """A byte range of a file as a readable file, without a copy: the data is read into the reader's own buffer.

    Args:
        file: open for reading. Nothing else may use it, because its position changes.
        start: offset of the first byte of the range.
        length: size of the range in bytes.
    """

    def __init__(self, file: io.RawIOBase, start: int, length: int) -> None:
        self._file, self._start, self.length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the range, and return it.

        Args:
            offset: in bytes.
            whence: `io.SEEK_SET`, `io.SEEK_CUR` or `io.SEEK_END`: what `offset` is relative to.

        Raises:
            OSError: The position is before the start of the range.
        """
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence]
        if at < 0:
            raise OSError("negative position in a file")
        self._at = at
        return at

    def tell(self) -> int:
        """Return the position in the range, in bytes."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read into a writable buffer, and return the number of bytes; 0 at the end of the range."""
        view = memoryview(buffer).cast("B")[: max(self.length - self._at, 0)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count
