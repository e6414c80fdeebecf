"""Write PREFIX_control_tokens.jsonl: the rows with control tokens in their text, each with its file and line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mindspeed_llm.preprocessing.row_list import RowListFile
from mindspeed_llm.tokenization import FoundControls

FILE = "control_tokens.jsonl"


class ControlTokenRows(RowListFile):
    """A list of the rows with control tokens in their text; `counts` holds the number of rows per token.

    Args:
        folder: directory that the list is written to.
        tokens: counts of a list that already exists there; None for a new list.
    """

    def __init__(self, folder: Path, tokens: Counter[str] | None = None) -> None:
        super().__init__(folder, FILE, tokens)

    def add(self, file: str, line: int, found: FoundControls) -> None:
        """Count and write one row.

        Args:
            file: input file of the row.
            line: line of the row in its file, counted from 1.
            found: control token → names of the fields that contain it.
        """
        self.counts.update(found.keys())
        self.write({"file": file, "line": line, "control_tokens": found})
