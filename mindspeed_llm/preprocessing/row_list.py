"""Lists of rows that are written beside the packed files, one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mindspeed_llm.storage.atomic_write import flush, partial_path


class RowListFile:
    """Counts and lists rows; the list is put in place together with the packed files.

    Args:
        folder: where to write until then.
        file: name of the list there.
        counts: of rows that lie there already, from an earlier run.

    Attributes:
        counts: how many rows for each reason or token.

    Raises:
        OSError: there should be rows already, and they cannot be read.
    """

    def __init__(self, folder: Path, file: str, counts: Counter[str] | None = None) -> None:
        self._path = folder / file
        self._file: TextIO | None = None
        self._source: BinaryIO | None = self._path.open("rb") if counts else None
        self._beside: Path | None = None
        self.counts: Counter[str] = Counter() if counts is None else counts

    def write(self, entry: dict[str, Any], more: dict[str, Any] | None = None) -> None:
        """Write one line: `entry` and, where JSON can hold it, `more`."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        try:
            text = json.dumps({**entry, **(more or {})}, ensure_ascii=False, default=str)
        except (RecursionError, TypeError):  # nested too deeply, or keys that JSON does not have
            text = json.dumps(entry, ensure_ascii=False)
        self._file.write(text + "\n")

    def finish(self) -> None:
        """End the writing; the file may be moved or removed then, it is held open."""
        if self._file is not None:
            self._file.close()
            self._file, self._source = None, self._path.open("rb")

    def ready(self, path: Path) -> tuple[Path | None, Path]:
        """(the whole file, written beside `path`; `path`) to be put in place; None for the former without any row."""
        beside = partial_path(path)
        if not self.counts:
            beside.unlink(missing_ok=True)  # what a killed run left
            return None, path
        self.finish()
        assert self._source is not None
        self._beside = beside
        with beside.open("wb") as file:
            shutil.copyfileobj(self._source, file)
            flush(file)
        return beside, path

    def close(self) -> None:
        """Close, and remove what was made ready and not put in place."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self._file.close()
        if self._source is not None:
            self._source.close()
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
