"""Lists of rows (JSON lines) that are written beside the packed files."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mindspeed_llm.storage.atomic_write import flush, partial_path


class RowListFile:
    """A JSON lines file of rows, published together with the packed files.

    Args:
        folder: directory that the list is written to until it is published.
        file: file name of the list.
        counts: counts of a list that an earlier run has written to `folder`; None for a new list.

    Attributes:
        counts: number of rows per reason or token.

    Raises:
        OSError: `counts` is not empty, but the list of the earlier run cannot be read.
    """

    def __init__(self, folder: Path, file: str, counts: Counter[str] | None = None) -> None:
        self._path = folder / file
        self._file: TextIO | None = None
        self._source: BinaryIO | None = self._path.open("rb") if counts else None
        self._beside: Path | None = None
        self.counts: Counter[str] = Counter() if counts is None else counts

    def write(self, entry: dict[str, Any], more: dict[str, Any] | None = None) -> None:
        """Write one line with the keys of `entry` and, if JSON can represent it, of `more`."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        try:
            text = json.dumps({**entry, **(more or {})}, ensure_ascii=False, default=str)
        except (RecursionError, TypeError):  # nested too deeply, or keys that JSON does not have
            text = json.dumps(entry, ensure_ascii=False)
        self._file.write(text + "\n")

    def finish(self) -> None:
        """Finish writing. The file stays open for reading, so that it can be moved or removed."""
        if self._file is not None:
            self._file.close()
            self._file, self._source = None, self._path.open("rb")

    def ready(self, path: Path) -> tuple[Path | None, Path]:
        """Copy the list to a temporary file beside `path`, ready to be renamed.

        Args:
            path: final path of the list.

        Returns:
            the temporary file and `path`; None in place of the temporary file if there is no row.
        """
        beside = partial_path(path)
        if not self.counts:
            beside.unlink(missing_ok=True)  # a killed run may have left it
            return None, path
        self.finish()
        assert self._source is not None
        self._beside = beside
        with beside.open("wb") as file:
            shutil.copyfileobj(self._source, file)
            flush(file)
        return beside, path

    def close(self) -> None:
        """Close the list, and remove a temporary file that was not renamed."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self._file.close()
        if self._source is not None:
            self._source.close()
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
