"""Read many files as one stream of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.input_files import InputFile
from mindspeed_llm.rawdata.row import Reader, ReadPosition, Row


def read_rows(files: Sequence[InputFile], position: ReadPosition | None = None) -> Iterator[Row]:
    """Yield the rows of all `files` in order.

    Args:
        files: input files of any formats.
        position: progress, which is updated.

    Raises:
        DataError: a file is damaged, has no rows, or is not in the format of its extension; with file and line.
    """
    position = position or ReadPosition()
    before = position.bytes_read
    for file in files:
        here = ReadPosition()
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
    """Return the reader of a format."""
    if kind in ("parquet", "arrow"):  # imported only here, because importing pyarrow takes long
        from mindspeed_llm.rawdata import parquet_arrow

        return parquet_arrow.READERS[kind]
    from mindspeed_llm.rawdata import text_formats

    return text_formats.READERS[kind]
