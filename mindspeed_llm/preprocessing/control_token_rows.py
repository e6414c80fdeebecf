"""PREFIX_control_tokens.jsonl: the rows with control tokens in their text, each with the place it came from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from mindspeed_llm.preprocessing.row_list import RowListFile
from mindspeed_llm.tokenization import FoundControls

FILE = "control_tokens.jsonl"


class ControlTokenRows(RowListFile):
    """Counts and lists rows with control tokens; `counts` has how many for each token. See ListedRows."""

    def __init__(self, folder: Path, tokens: Counter[str] | None = None) -> None:
        super().__init__(folder, FILE, tokens)

    def add(self, file: str, line: int, found: FoundControls) -> None:
        """Count and write one row."""
        self.counts.update(found.keys())
        self.write({"file": file, "line": line, "control_tokens": found})
