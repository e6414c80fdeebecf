"""Format tables of plain text for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def key_value_table(rows: Sequence[tuple[str, str | Sequence[str]]]) -> str:
    """Format rows of a name and a value as a table with aligned values.

    Args:
        rows: (name, value) or (name, lines of the value). The name is printed before the first line only.

    Returns:
        The table, its lines separated by line breaks.
    """
    width = max((display_width(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        for number, line in enumerate([value] if isinstance(value, str) else value):
            lines.append(f"{_padded('' if number else name, width, right=False)}  {line}")
    return "\n".join(lines)


def align_columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Format rows of cells as lines with aligned columns.

    Args:
        rows: cells of each row; all rows have the same number of cells.
        left: number of leading columns that are aligned left. The others are aligned right.

    Returns:
        One line per row, without trailing spaces.
    """
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(cell, widths[i], right=i >= left) for i, cell in enumerate(row)).rstrip() for row in rows]


def table_with_header(rows: Sequence[Sequence[str]]) -> str:
    """Format a table with a rule under the header: the first column is aligned left, the others right.

    Args:
        rows: cells of each row; the first row is the header.
    """
    head, *others = align_columns(rows)
    rule = "  ".join("-" * max(map(display_width, column)) for column in zip(*rows, strict=True))
    return "\n".join([head, rule, *others])


def display_width(text: str) -> int:
    """Return the number of terminal columns of a text: a wide East Asian character takes two columns."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, right: bool) -> str:
    gap = " " * (width - display_width(text))
    return gap + text if right else text + gap
