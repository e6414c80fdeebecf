"""Characters on which tokenizer libraries differ, because their tables are of different versions of Unicode.

The library `tokenizers` 0.23 normalizes by Unicode 9 and takes letters from Unicode 16; gigatoken 0.10 follows Unicode
17. A mark that was added in between is reordered by one and not by the other; a letter that was added is a letter for
one and punctuation for the other. What Unicode had assigned before keeps its properties.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

# Code points of letters, marks and numbers that were added after Unicode 9, and rare blocks that contain some. Symbols
# and emoji are missing, because the libraries treat them as they treat unassigned characters.
RECENT = """
    0560 0588 05EF 07FD 0860-08FF 09FC 09FE 0AFA-0AFF 0B55 0C04 0C3C 0C5C-0C5D 0CDC-0CDD 0CF3 0D00 0D04 0D3B-0D3C 0D81
    0E86 0E89 0E8C 0E8E-0E93 0E98 0EA0 0EA8-0EA9 0EAC 0EBA 0ECE 1700-171F 180F 1878 1AB0-1AFF 1B4C 1B4E-1B4F 1C89-1CBF
    1CF7 1CFA 1DF6-1DFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FD6-9FFF A7AF A7B8-A7F6 A82C A8FE-A8FF AB66-AB69
    10000-1D3FF 1D800-1EFFF 1FBF0-1FBF9 2A6D7-2A6FF 2B735-2B73F 2B81E-2B81F 2CEA2-2F7FF 2FA1E-3FFFF
"""


def has_recent_characters(text: str) -> bool:
    """Return whether `text` contains characters that not all libraries know."""
    if text.isascii():
        return False
    # A table is five times as fast as a regular expression.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return bool(_table()[codes].any())


@cache
def _table() -> NDArray[np.bool_]:
    """Return whether each code point is in RECENT, bool [code points]."""
    table = np.zeros(0x110000, bool)
    for entry in RECENT.split():
        first, _, last = entry.partition("-")
        table[int(first, 16) : int(last or first, 16) + 1] = True
    return table
