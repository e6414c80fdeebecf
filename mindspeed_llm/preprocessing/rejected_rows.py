"""PREFIX_rejected.jsonl: the rows that gave no sample, each with the reason and the place it came from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mindspeed_llm.preprocessing.row_list import RowListFile
from mindspeed_llm.rawdata import Row

FILE = "rejected.jsonl"


class RejectedRows(RowListFile):
    """Counts and keeps rejected rows; `counts` has how many for each reason. See ListedRows."""

    def __init__(self, folder: Path, reasons: Counter[str] | None = None) -> None:
        super().__init__(folder, FILE, reasons)

    def add(self, row: Row, reason: str) -> None:
        """Count and write one row."""
        self.counts[reason] += 1
        self.write({"file": row.file, "line": row.line, "reason": reason}, {"row": row.value})
