"""PREFIX_rejected.jsonl: the rows that gave no sample, each with the reason and the place it came from."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import BinaryIO, TextIO

from mindspeed_llm.rawdata import Row
from mindspeed_llm.storage.atomic import flush, partial_path

FILE = "rejected.jsonl"


class RejectedRows:
    """Counts and keeps rejected rows; put in place together with the packed files.

    Args:
        folder: where to write until then.
        reasons: of rows that lie there already, from an earlier run.

    Attributes:
        reasons: how many rows for each reason.

    Raises:
        OSError: there should be rows already, and they cannot be read.
    """

    def __init__(self, folder: Path, reasons: Counter[str] | None = None) -> None:
        self._path = folder / FILE
        self._file: TextIO | None = None
        self._source: BinaryIO | None = self._path.open("rb") if reasons else None
        self._beside: Path | None = None
        self.reasons: Counter[str] = Counter() if reasons is None else reasons

    def add(self, row: Row, reason: str) -> None:
        """Count and write down one row."""
        self.reasons[reason] += 1
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        entry = {"file": row.file, "line": row.line, "reason": reason}
        try:
            text = json.dumps({**entry, "row": row.value}, ensure_ascii=False, default=str)
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
        if not self.reasons:
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
