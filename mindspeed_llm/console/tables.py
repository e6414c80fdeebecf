"""Tables of plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

Cell = str


def start_table(rows: Sequence[tuple[str, str | Sequence[str]]]) -> str:
    """Rows of a name and a value, or of a name and several lines, with the values lined up."""
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        for number, line in enumerate([value] if isinstance(value, str) else value):
            lines.append(f"{name if number == 0 else '':{width}}  {line}")
    return "\n".join(lines)


def plain_table(rows: Sequence[Sequence[Cell]], head: bool = True) -> str:
    """Columns lined up: the first to the left, the rest to the right; a rule under the head."""
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [_padded(cell, width, right=i > 0) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    if head:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap
