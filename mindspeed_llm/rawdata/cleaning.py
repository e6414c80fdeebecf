"""Bytes that are no UTF-8 must not stop a streaming JSON parser: they are marked, and spoil their own row alone."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

# A noncharacter: no text may hold it, so a value that does held bytes that are not UTF-8.
MARK = "\U0010ffff"
# Every escape of a JSON string; the second group is half of a surrogate pair without the other half.
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
LONGEST_ESCAPE = 12  # two halves of a surrogate pair

codecs.register_error(
    "mindspeed_llm.mark", lambda error: (MARK, error.end) if isinstance(error, UnicodeDecodeError) else ("", 0)
)


class Utf8Cleaner:
    """Cleans the pieces of one file.

    Attributes:
        used: whether anything had to be marked so far.
    """

    def __init__(self) -> None:
        self.used = False

    def cleaned(self, pieces: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """The same (line, bytes) with a MARK for each byte that is not UTF-8, and each half surrogate pair."""
        decoder = codecs.getincrementaldecoder("utf-8")("mindspeed_llm.mark")
        rest, line = b"", 1
        fresh = True  # a line begins: nothing is held back, here or in the decoder
        for line, piece in pieces:
            ended, begun = piece.endswith(b"\n"), fresh
            fresh = ended
            if begun and ended and piece.isascii() and b"\\ud" not in piece and b"\\uD" not in piece:
                yield line, piece  # as nearly all: quickly
                continue
            piece = rest + decoder.decode(piece).encode()
            cut = len(piece)
            if not piece.endswith(b"\n"):  # a piece of a long line: it may end inside an escape
                at = piece.find(b"\\", max(0, cut - LONGEST_ESCAPE))
                if at >= 6 and HIGH.fullmatch(piece[at - 6 : at]):
                    at -= 6
                if at >= 0:
                    cut = at - (len(piece[:at]) - len(piece[:at].rstrip(b"\\")))
            piece, rest = piece[:cut], piece[cut:]
            yield line, self._marked(piece)
        rest += decoder.decode(b"", final=True).encode()
        if rest:
            yield line, self._marked(rest)

    def _marked(self, piece: bytes) -> bytes:
        if b"\\ud" in piece or b"\\uD" in piece:
            piece = ESCAPE.sub(lambda found: MARK.encode() if found[1] else found[0], piece)
        self.used = self.used or MARK.encode() in piece
        return piece

    def spoilt(self, value: Any) -> bool:
        """Whether a value of the file holds a MARK."""
        return self.used and MARK in json.dumps(value, ensure_ascii=False, default=str)
