"""Provide lines of a CSV file to Python's csv.reader, with bounded memory for rows beyond the size limit."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator

from mindspeed_llm.rawdata.row_limits import SHOWN, TOO_LARGE

PIECE = 1 << 16
PLAIN = re.compile(rb'([^"\r\n])[^"\r\n]+([^"\r\n])')
QUOTES = re.compile(rb'"{4,}')


class CsvLines:
    """Iterate over the lines of a CSV file as text; of a row that is too large only over what determines its end.

    Args:
        readline: reads at most the given number of bytes of the current line.
        max_bytes: size limit of a row in bytes, without the line ending.

    Attributes:
        too_large: whether the current row exceeds the limit.
        beginning: the first bytes of the current row.
    """

    def __init__(self, readline: Callable[[int], bytes], max_bytes: int) -> None:
        self._readline, self._max_bytes = readline, max_bytes
        self._line = 0  # lines read so far
        self.begin_row()

    def begin_row(self) -> int:
        """Begin the next row and return the number of its first line."""
        self._size, self.too_large, self.beginning = 0, False, b""
        return self._line + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # Two bytes more than the limit, because the line ending does not count.
        while text := self._readline(max(1, self._max_bytes + 2 - self._size) if not self.too_large else PIECE):
            self._line += 1
            self.beginning = self.beginning or text[:SHOWN]
            self._size += len(text)
            # Bytes that are not UTF-8 pass through csv.reader, so that only their row is rejected and not the file.
            if not self.too_large and len(text.rstrip(b"\r\n")) + self._size - len(text) <= self._max_bytes:
                return text.decode(errors="surrogateescape")
            inside = self.too_large
            self.too_large = True
            text = self._squeezed(text)
            # csv.reader requests another line of the same row only inside a quoted cell, where a line without a quote
            # ends nothing.
            if b'"' in text or not inside:
                return text.decode(errors="surrogateescape")
        raise StopIteration

    def _squeezed(self, text: bytes) -> bytes:
        """Read the line that begins with `text` to its end; return only the part that matters for the end of the row.

        Raises:
            csv.Error: the line contains so many quotes that this part is too large.
        """
        text = shorten_csv_text(text)
        while not text.endswith(b"\n") and (piece := self._readline(PIECE)):
            text = shorten_csv_text(text + piece)
            if len(text) > max(self._max_bytes, PIECE):
                raise csv.Error(f"a row is {TOO_LARGE} and contains too many quotes to find its end")
        return text


def shorten_csv_text(text: bytes) -> bytes:
    """Return a part of a CSV line shortened such that csv.reader is in the same state after it.

    Text between quotes keeps its first and last character. Of more than three quotes as many remain as keep their
    number even or odd.
    """
    return QUOTES.sub(lambda quotes: b'"' * (2 + len(quotes[0]) % 2), PLAIN.sub(rb"\1\2", text))
