"""One stream of rows over many files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.files import InputFile

NOT_UTF8 = "not UTF-8"


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
class Position:
    """How far the reading has come, for progress: bytes of input files (compressed as they lie) so far."""

    bytes_read: int = 0


# A reader gives (line, value, problem) and keeps the number of bytes of its file that it has used in `Position`.
Reader = Callable[[InputFile, Position], Iterator[tuple[int, Any, "str | None"]]]


def read_rows(files: Sequence[InputFile], position: Position | None = None) -> Iterator[Row]:
    """The rows of all `files` in order.

    Raises:
        DataError: a file that is not what its name says, damaged, or without any row; with file and line.
    """
    position = position or Position()
    before = position.bytes_read
    for file in files:
        here = Position()
        name = str(file.path)
        count = 0
        for line, value, problem in _reader(file.format)(file, here):
            position.bytes_read = before + here.bytes_read
            count += 1
            yield Row(name, line, value, problem)
        if count == 0:
            raise DataError(f"{name}: no row in the file; check that it was written or downloaded completely")
        before += file.size
        position.bytes_read = before


def _reader(kind: str) -> Reader:
    if kind in ("parquet", "arrow"):  # pyarrow takes its time to import
        from mindspeed_llm.rawdata import columnar

        return columnar.READERS[kind]
    from mindspeed_llm.rawdata import text

    return text.READERS[kind]
