"""Limits of one row; a row beyond them is rejected and listed with its beginning, and the rows after it are read.

Without limits a small compressed file could fill the memory with one row, and deep nesting would exceed Python's
recursion limit.
"""

from __future__ import annotations

import re

import numpy as np

DEPTH = 256
ROW_MIB = 128
SHOWN = 200  # bytes listed of a row that is too large
TOO_DEEP = f"nested deeper than {DEPTH} levels"
TOO_LARGE = "larger than --max-row-mib"
STRING = re.compile(rb'"[^"]*"?')
NOT_BRACKETS = bytes(set(range(256)) - set(b"{[]}"))
STEPS = np.zeros(256, np.int64)
STEPS[list(b"{[")], STEPS[list(b"]}")] = 1, -1
BRACKETS_AT_ONCE = 1 << 20


def is_nested_too_deep(text: bytes) -> bool:
    """Return whether JSON text nests objects and lists deeper than DEPTH; the row's own brackets are the first level.

    Only brackets outside strings count. Text with brackets that are not closed is invalid JSON instead.
    """
    if text.count(b"[") + text.count(b"{") <= DEPTH:
        return False
    # Escaped backslashes go first, so that the quote after them still ends its string.
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = STRING.sub(b"", unescaped).translate(None, NOT_BRACKETS)
    depth = deepest = 0
    # In pieces, because the cumulative sums take 8 bytes per bracket.
    for start in range(0, len(brackets), BRACKETS_AT_ONCE):
        piece = np.frombuffer(brackets[start : start + BRACKETS_AT_ONCE], np.uint8)
        depths = depth + np.cumsum(STEPS[piece])
        deepest, depth = max(deepest, int(depths.max())), int(depths[-1])
    return deepest > DEPTH and depth == 0


def row_excerpt(text: bytes) -> str:
    """Return the first SHOWN bytes of a row that is too large, as text."""
    return text[:SHOWN].decode(errors="replace").strip() + " …"
