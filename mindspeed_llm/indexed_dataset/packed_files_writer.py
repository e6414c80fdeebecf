"""Write a set of packed files so that a reader sees the old set, the new one, or a refusal, never a mixture."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.indexed_dataset.manifest import Manifest
from mindspeed_llm.indexed_dataset.packed_files import COLUMNS, column_prefix, manifest_path
from mindspeed_llm.storage.atomic_write import flush_folder, partial_path, rename, write_atomically
from mindspeed_llm.storage.disk_errors import disk_errors
from mindspeed_llm.storage.hashing import FileDigest

try:
    import fcntl
except ImportError:  # not a POSIX system: two runs writing one prefix at a time are then not noticed
    fcntl = None  # type: ignore[assignment]


class PackedFilesWriter:
    """Write the six files and the manifest of one prefix.

        with PackedFilesWriter(prefix) as out:
            for ...:
                out.add(input_ids, attention_mask, labels)      # one pack, or one sample if not packed
            out.commit(manifest)

    The files are written under temporary names beside their places. `commit` first replaces the manifest by one
    that says 'in progress' (which readers refuse), then renames the files, then writes the manifest. Leaving the
    block without `commit`, by an exception or Ctrl-C, removes the temporary files and leaves the old set as it was.
    After a kill the temporary files are overwritten by the next run.

    Args:
        prefix: as for `PackedFiles.open`; its directory is made if need be.

    Raises:
        DataError: the disk is full, the place cannot be written, or another run is writing this prefix.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        self._directory = column_prefix(prefix, COLUMNS[0]).parent
        with disk_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
        self._lock_path = self._directory / f".{self.prefix.name}_packed.lock"
        self._lock: int | None = None
        self._writers: list[IndexedWriter] = []
        self.committed = False
        self._acquire()
        try:
            for column in COLUMNS:
                final = column_prefix(prefix, column)
                self._writers.append(IndexedWriter(partial_path(final)))
        except BaseException:
            self.discard()
            raise

    def _acquire(self) -> None:
        """Take the prefix for this run, until it ends in any way."""
        if fcntl is None:
            return
        with disk_errors(self._lock_path):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        busy = False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The run before may have removed the file between our opening and our locking it.
            busy = not (self._lock_path.exists() and os.path.samestat(os.fstat(lock), self._lock_path.stat()))
        except BlockingIOError:
            busy = True
        except OSError:  # a file system without locks
            pass
        if busy:
            os.close(lock)
            raise DataError(
                f"{self.prefix}: another run is writing this --output-prefix; wait for it, or choose another"
            )
        self._lock = lock

    def add(self, input_ids: npt.NDArray[Any], attention_mask: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Write one pack, or one sample of files that are not packed: three arrays of one length [length]."""
        assert len(input_ids) == len(attention_mask) == len(labels)
        for writer, tokens in zip(self._writers, (input_ids, attention_mask, labels), strict=True):
            writer.add(tokens)

    def add_rows(self, input_ids: npt.NDArray[Any], attention_mask: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Write many packs: three arrays of one shape [packs, seq_length]."""
        assert input_ids.shape == attention_mask.shape == labels.shape
        for writer, tokens in zip(self._writers, (input_ids, attention_mask, labels), strict=True):
            writer.add_rows(tokens)

    def commit(self, manifest: Manifest, beside: Sequence[tuple[Path | None, Path]] = ()) -> Manifest:
        """Put the files in place, then `manifest` with their sizes and hashes, which is returned.

        Args:
            beside: further files that belong to this set: (where it was written, its place), on one file system;
                None in place of the former removes what lies at the latter.
        """
        moves: list[tuple[Path | None, Path]] = list(beside)
        files: dict[str, FileDigest] = {}
        for column, writer in zip(COLUMNS, self._writers, strict=True):
            facts = writer.finish()
            for written, ending in ((writer.bin_path, "bin"), (writer.idx_path, "idx")):
                final = Path(f"{column_prefix(self.prefix, column)}.{ending}")
                moves.append((written, final))
                files[final.name] = facts[written.name]
        complete = dataclasses.replace(manifest, files=files, state="complete")
        path = manifest_path(self.prefix)
        with disk_errors(path):
            self._replace(moves, complete, path)
        self.committed = True
        return complete

    def _replace(self, moves: list[tuple[Path | None, Path]], complete: Manifest, path: Path) -> None:
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
            with contextlib.suppress(OSError):  # not every file system can
                flush_folder(self._directory)
            complete.write(path)
        except BaseException:
            if not moved:  # the old set is untouched: give it its manifest back
                with contextlib.suppress(OSError):
                    if before is None:
                        path.unlink()
                    else:
                        write_atomically(path, before)
            raise

    def discard(self) -> None:
        """Remove the temporary files and release the prefix."""
        for writer in self._writers:
            writer.discard()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock_path.unlink()
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> PackedFilesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()
