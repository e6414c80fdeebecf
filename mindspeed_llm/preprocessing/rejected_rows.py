"""Write PREFIX_rejected.jsonl: the rows that gave no sample, each with the reason and its file and line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mindspeed_llm.preprocessing.row_list import RowListFile
from mindspeed_llm.rawdata import Row

FILE = "rejected.jsonl"
# Reasons quote the data, so their number needs a limit: further ones are counted together.
MAX_REASONS = 200
OTHER_REASONS = "other reasons"
POSITION = re.compile(r"\[\d+\]")


class RejectedRows(RowListFile):
    """A list of the rejected rows; `counts` holds the number of rows per reason.

    Args:
        folder: directory that the list is written to.
        reasons: counts of a list that already exists there; None for a new list.
    """

    def __init__(self, folder: Path, reasons: Counter[str] | None = None) -> None:
        super().__init__(folder, FILE, reasons)

    def add(self, row: Row, reason: str) -> None:
        """Count a row and write it with the reason why it gave no sample.

        Reasons that differ only in the position of a message, such as conversations[3], are counted as one.
        """
        counted = POSITION.sub("[]", reason)
        is_counted = counted in self.counts or len(self.counts) < MAX_REASONS
        self.counts[counted if is_counted else OTHER_REASONS] += 1
        self.write({"file": row.file, "line": row.line, "reason": reason}, {"row": row.value})
