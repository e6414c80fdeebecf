"""Lines of a CSV file for Python's csv.reader, with bounded memory for a row that is larger than a row may be."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator

from mindspeed_llm.rawdata.row_limits import SHOWN, TOO_LARGE

PIECE = 1 << 16
PLAIN = re.compile(rb'([^"\r\n])[^"\r\n]+([^"\r\n])')
QUOTES = re.compile(rb'"{4,}')


class CsvLines:
    """Iterator of lines as text. Of a row that is too large it gives only what tells csv.reader where the row ends.

    csv.reader asks for another line of the same row only inside a quoted cell, where a line without a quote ends
    nothing.

    Args:
        readline: of the file.
        most: size limit of a row in bytes.

    Attributes:
        too_large: the row that is being read exceeds the limit.
        beginning: first bytes of that row.
    """

    def __init__(self, readline: Callable[[int], bytes], most: int) -> None:
        self._readline, self._most = readline, most
        self._line = 0  # lines read so far
        self.begin_row()

    def begin_row(self) -> int:
        """Begin the next row; return the number of its first line."""
        self._size, self.too_large, self.beginning = 0, False, b""
        return self._line + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while text := self._readline(max(1, self._most + 2 - self._size) if not self.too_large else PIECE):
            self._line += 1
            self.beginning = self.beginning or text[:SHOWN]
            self._size += len(text)
            if not self.too_large and len(text.rstrip(b"\r\n")) + self._size - len(text) <= self._most:
                return text.decode(errors="surrogateescape")
            inside = self.too_large
            self.too_large = True
            text = self._squeezed(text)
            if b'"' in text or not inside:
                return text.decode(errors="surrogateescape")
        raise StopIteration

    def _squeezed(self, text: bytes) -> bytes:
        """Return the line that begins with `text`, read to its end, without what does not matter for the row's end.

        Raises:
            csv.Error: it holds so many quotes that too much is left.
        """
        text = shorten_csv_text(text)
        while not text.endswith(b"\n") and (piece := self._readline(PIECE)):
            text = shorten_csv_text(text + piece)
            if len(text) > max(self._most, PIECE):
                raise csv.Error(f"a row {TOO_LARGE}, with too many quotes to find its end")
        return text


def shorten_csv_text(text: bytes) -> bytes:
    """Return a part of a CSV line shortened so that csv.reader is in the same state after it.

    Text between quotes keeps its first and last character, more than three quotes keep whether they are even or odd.
    """
    return QUOTES.sub(lambda quotes: b'"' * (2 + len(quotes[0]) % 2), PLAIN.sub(rb"\1\2", text))
