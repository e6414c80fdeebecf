"""What the reader of a format gives, and what it tells of its progress: every format's module builds on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.rawdata.input_files import InputFile

# Problems of a row whose extent is known, so that the rows after it can be read.
NOT_UTF8 = "not UTF-8"
BROKEN_JSON = "broken JSON"


@dataclass(slots=True)
class Row:
    """One row as the file holds it.

    Attributes:
        file: path of the file, as text.
        line: line on which the row starts; its number for parquet and arrow. Counted from 1.
        value: a dict from column to value in a sound row; anything in a bad one.
        problem: why the row cannot be read (in words), None if it can.
    """

    file: str
    line: int
    value: Any
    problem: str | None = None


@dataclass
class ReadPosition:
    """How far the reading has come, for progress: bytes of input files (compressed as they lie) so far."""

    bytes_read: int = 0


# (line, value, problem) of each row, as in Row.
Numbered = Iterator[tuple[int, Any, "str | None"]]
# Keeps the number of bytes of its file that it has used in `Position`.
Reader = Callable[[InputFile, ReadPosition], Numbered]
