"""Limits of one row. A row beyond them is a bad row, listed with its beginning; the rows after it are read.

Without limits a small compressed file fills the memory with one row, and deep nesting exceeds Python's recursion limit.
"""

from __future__ import annotations

import re

import numpy as np

DEPTH = 256
ROW_MIB = 128
SHOWN = 200  # bytes of a row that is too large which are listed
TOO_DEEP = f"nested deeper than {DEPTH} levels"
TOO_LARGE = "larger than --max-row-mib"
STRING = re.compile(rb'"[^"]*"?')
NOT_BRACKETS = bytes(set(range(256)) - set(b"{[]}"))
STEPS = np.zeros(256, np.int64)
STEPS[list(b"{[")], STEPS[list(b"]}")] = 1, -1
BRACKETS_AT_ONCE = 1 << 20


def is_nested_too_deep(text: bytes) -> bool:
    """Return whether JSON text nests objects and lists deeper than DEPTH; a row's own brackets are the first level.

    Only brackets outside strings count. Text whose brackets are not all closed is broken instead.
    """
    if text.count(b"[") + text.count(b"{") <= DEPTH:
        return False
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = STRING.sub(b"", unescaped).translate(None, NOT_BRACKETS)
    depth = deepest = 0
    for start in range(0, len(brackets), BRACKETS_AT_ONCE):
        piece = np.frombuffer(brackets[start : start + BRACKETS_AT_ONCE], np.uint8)
        depths = depth + np.cumsum(STEPS[piece])
        deepest, depth = max(deepest, int(depths.max())), int(depths[-1])
    return deepest > DEPTH and depth == 0


def row_excerpt(text: bytes) -> str:
    """Return the first SHOWN bytes of a row that is too large, as text."""
    return text[:SHOWN].decode(errors="replace").strip() + " …"
