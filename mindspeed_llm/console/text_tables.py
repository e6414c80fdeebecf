"""Tables of plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def key_value_table(rows: Sequence[tuple[str, str | Sequence[str]]]) -> str:
    """Rows of a name and a value, or of a name and several lines, with the values lined up."""
    width = max((display_width(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        for number, line in enumerate([value] if isinstance(value, str) else value):
            lines.append(f"{_padded('' if number else name, width, right=False)}  {line}")
    return "\n".join(lines)


def align_columns(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of cells in columns: the first `left` of these flush left, the others flush right."""
    widths = [max(map(display_width, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(cell, widths[i], right=i >= left) for i, cell in enumerate(row)).rstrip() for row in rows]


def table_with_header(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first flush left, with a rule under the first row."""
    head, *others = align_columns(rows)
    rule = "  ".join("-" * max(map(display_width, column)) for column in zip(*rows, strict=True))
    return "\n".join([head, rule, *others])


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: a wide character of East Asia takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, right: bool) -> str:
    gap = " " * (width - display_width(text))
    return gap + text if right else text + gap
