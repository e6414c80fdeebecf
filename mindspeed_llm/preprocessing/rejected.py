"""PREFIX_rejected.jsonl: the rows that gave no sample, each with the reason and the place it came from."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TextIO

from mindspeed_llm.rawdata import Row


class RejectedRows:
    """Counts and keeps rejected rows; in place only after `publish`.

    Args:
        folder: where to write until then.

    Attributes:
        reasons: how many rows for each reason.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rejected.jsonl"
        self._file: TextIO | None = None
        self.reasons: Counter[str] = Counter()

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

    def publish(self, path: Path) -> None:
        """Put the file in place; without a rejected row there is none, and an older one goes."""
        if self._file is None:
            path.unlink(missing_ok=True)
            return
        self._file.close()
        beside = path.with_name(f".{path.name}.partial")
        shutil.copyfile(self._path, beside)
        beside.replace(path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
