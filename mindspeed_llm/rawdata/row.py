"""Rows and reading positions, the result of every reader of a format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.rawdata.input_files import InputFile

# Problems of a row whose end is known, so that the rows after it can be read.
NOT_UTF8 = "not UTF-8"
BROKEN_JSON = "broken JSON"


@dataclass(slots=True)
class Row:
    """One row of an input file.

    Attributes:
        file: path of the file, as text.
        line: line on which the row starts, or its number in a parquet or Arrow file; counted from 1.
        value: dict from column to value for a valid row; anything for an invalid one.
        problem: the reason why the row cannot be read; None if it can.
    """

    file: str
    line: int
    value: Any
    problem: str | None = None


@dataclass
class ReadPosition:
    """Progress of reading.

    Attributes:
        bytes_read: bytes of the input files read so far, before decompression.
    """

    bytes_read: int = 0


# (line, value, problem) of each row, as in Row.
Numbered = Iterator[tuple[int, Any, "str | None"]]
# Updates the number of bytes of its file that it has read in `ReadPosition`.
Reader = Callable[[InputFile, ReadPosition], Numbered]
