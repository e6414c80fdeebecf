"""Write a set of files as one transaction: readers see the old set, the new set or an error, never a mixture."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.interrupts import hold_interrupts
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.storage.atomic_write import flush_folder, partial_path, rename, write_atomically
from mindspeed_llm.storage.disk_errors import disk_errors
from mindspeed_llm.storage.hashing import FileDigest

try:
    import fcntl
except ImportError:
    # Not a POSIX system. Two runs that write the same prefix at the same time are not detected there.
    fcntl = None  # type: ignore[assignment]

Writer = TypeVar("Writer", bound="FileSetWriter")


class FileSetWriter:
    """Write .bin/.idx pairs and their manifest; the base of `PackedFilesWriter` and `DocumentFilesWriter`.

    The files are written under temporary names in the output directory. `commit` first replaces the manifest by a
    manifest with the state 'in progress' (which readers refuse), then renames the files, then writes the new manifest.
    Without `commit`, for example after an exception or Ctrl-C, the temporary files are removed and the old set is
    unchanged. The temporary files of a killed run are overwritten by the next run.

    Args:
        prefix: prefix of the set, for messages.
        finals: path of each pair without .bin or .idx, in one directory, which is created if necessary.
        manifest: path of the manifest.
        lock: path of the lock file.
        dtype: type of the tokens.

    Attributes:
        prefix: the prefix as a path.
        committed: whether `commit` has completed.

    Raises:
        DataError: The disk is full, the directory cannot be written, or another run is writing this prefix.
    """

    def __init__(
        self, prefix: Path, finals: Sequence[Path], manifest: Path, lock: Path, dtype: npt.DTypeLike = "int32"
    ) -> None:
        self.prefix = prefix
        self._finals = tuple(finals)
        self._manifest = manifest
        self._directory = self._finals[0].parent
        with disk_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._lock_path = lock
        self._lock: int | None = None
        self._writers: list[IndexedWriter] = []
        # A thread per pair hashes and writes, without Python's global interpreter lock, while the caller builds the
        # next tokens.
        self._threads = ThreadPoolExecutor(len(self._finals), thread_name_prefix="write")
        self._pending: list[Future[None]] = []
        self.committed = False
        try:
            with hold_interrupts():
                self._acquire()
                for final in self._finals:
                    self._writers.append(IndexedWriter(partial_path(final), dtype))
        except BaseException:
            self.discard()
            raise

    def _acquire(self) -> None:
        """Lock the prefix for this run."""
        if fcntl is None:
            return
        # The operating system releases the lock of a process that ends in any way, so no lock outlives a kill.
        with disk_errors(self._lock_path):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        busy = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our opening and our locking of the file, the run that held the lock may have removed it.
            busy = not (self._lock_path.exists() and os.path.samestat(os.fstat(lock), self._lock_path.stat()))
        except BlockingIOError:
            busy = True
        except OSError:
            # The file system has no locks. That must not prevent preprocessing.
            pass
        if busy:
            os.close(lock)
            raise DataError(
                f"{self.prefix}: another run is writing this --output-prefix; wait for it, or choose another prefix"
            )
        self._lock = lock

    def _submit(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Write in the background, after what was submitted before."""
        self._wait()
        self._pending = [self._threads.submit(job) for job in jobs]

    def _wait(self) -> None:
        """Wait for what is being written, and raise the first error of writing it."""
        pending, self._pending = self._pending, []
        wait(pending)
        for written in pending:
            written.result()

    def commit(self, manifest: Manifest, beside: Sequence[tuple[Path | None, Path]] = ()) -> Manifest:
        """Replace the old set of files by the new set.

        Args:
            manifest: manifest of the new set; its `files` and `state` are filled in.
            beside: further files of the set as (temporary path, final path), both on the same file system. If the
                temporary path is None, the file at the final path is removed.

        Returns:
            The complete manifest, with sizes and hashes of the files.

        Raises:
            DataError: The disk is full or a file cannot be written.
        """
        self._wait()
        moves: list[tuple[Path | None, Path]] = list(beside)
        files: dict[str, FileDigest] = {}
        for target, writer in zip(self._finals, self._writers, strict=True):
            facts = writer.finish()
            for written, ending in ((writer.bin_path, "bin"), (writer.idx_path, "idx")):
                final = Path(f"{target}.{ending}")
                moves.append((written, final))
                files[final.name] = facts[written.name]
        complete = dataclasses.replace(manifest, files=files, state="complete")
        path = self._manifest
        with disk_errors(path), hold_interrupts():
            self._replace(moves, complete, path)
        self.committed = True
        return complete

    def _replace(self, moves: list[tuple[Path | None, Path]], complete: Manifest, path: Path) -> None:
        """Replace the files, with a manifest at `path` that readers refuse until all of them are replaced."""
        before = path.read_bytes() if path.exists() else None
        moved = False
        try:
            dataclasses.replace(complete, state="in progress").write(path)
            for written, final in moves:
                if written is not None:
                    rename(written, final)
                    moved = True
                elif final.exists():
                    final.unlink()
                    moved = True
            # The new names must be on the disk before the manifest declares them complete. Not every file system
            # supports this.
            with contextlib.suppress(OSError):
                flush_folder(self._directory)
            complete.write(path)
        except BaseException:
            # As long as no file has been replaced, the old set is complete: restore its manifest.
            if not moved:
                with contextlib.suppress(OSError):
                    if before is None:
                        path.unlink()
                    else:
                        write_atomically(path, before)
            raise

    def discard(self) -> None:
        """Remove the temporary files, if any, and unlock the prefix."""
        self._threads.shutdown()
        for writer in self._writers:
            writer.discard()
        if self._lock is not None:
            # Removed before it is unlocked: a run that has already opened the file then detects that it was removed.
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
            os.close(self._lock)
            self._lock = None

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with hold_interrupts():
            self.discard()
