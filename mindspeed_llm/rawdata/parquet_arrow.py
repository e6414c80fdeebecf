"""Read the rows of parquet and Arrow files, one record batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.input_files import InputFile
from mindspeed_llm.rawdata.row import NOT_UTF8, Numbered, Reader, ReadPosition
from mindspeed_llm.rawdata.row_limits import TOO_LARGE

ROWS_PER_BATCH = 1024
KEY_TWICE = "a map with the same key twice"


def read_parquet(file: InputFile, position: ReadPosition) -> Numbered:
    """Yield (row number, row as a dict, problem) of each row of a parquet file.

    Raises:
        DataError: the file is damaged.
    """
    with _PyarrowErrors(file), pyarrow.parquet.ParquetFile(file.path) as parquet:
        total = max(1, parquet.metadata.num_rows)
        yield from _rows(parquet.iter_batches(batch_size=ROWS_PER_BATCH), file, position, total)


def row_group_sizes(file: InputFile) -> list[tuple[int, int]]:
    """Return (rows, bytes) of each row group of a parquet file.

    Raises:
        DataError: the file is damaged.
    """
    with _PyarrowErrors(file), pyarrow.parquet.ParquetFile(file.path) as parquet:
        groups = (parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups))
        return [(group.num_rows, group.total_byte_size) for group in groups]


def read_row_groups(file: InputFile, groups: range, first: int) -> Numbered:
    """Yield (row number, row as a dict, problem) of the rows of some row groups of a parquet file.

    Args:
        file: the file.
        groups: indices of the row groups.
        first: number of the first of these rows.

    Raises:
        DataError: the file is damaged.
    """
    with _PyarrowErrors(file), pyarrow.parquet.ParquetFile(file.path) as parquet:
        batches = parquet.iter_batches(batch_size=ROWS_PER_BATCH, row_groups=list(groups))
        for number, row, problem in _rows(batches, file, ReadPosition(), None):
            yield number + first - 1, row, problem


def read_arrow(file: InputFile, position: ReadPosition) -> Numbered:
    """Yield (row number, row as a dict, problem) of each row of an Arrow file.

    Both of Arrow's formats are read, the file format and the stream format that Hugging Face's datasets writes.

    Raises:
        DataError: the file is damaged.
    """
    with _PyarrowErrors(file), pyarrow.memory_map(str(file.path)) as source:
        try:
            opened = pyarrow.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        yield from _rows(batches, file, position, None, source)


def _rows(
    batches: Iterator[pyarrow.RecordBatch],
    file: InputFile,
    position: ReadPosition,
    total: int | None,
    source: Any = None,
) -> Numbered:
    """Yield the numbered rows of record batches; the progress comes from `total` rows or from the bytes of `source`."""
    number = 0
    for batch in batches:
        # A record batch of Arrow may be the complete file.
        for start in range(0, batch.num_rows, ROWS_PER_BATCH):
            for row, problem in _bounded_values(batch.slice(start, ROWS_PER_BATCH), file.row_bytes):
                number += 1
                yield number, row, problem
            if total:
                position.bytes_read = file.size * number // total
            elif source is not None:
                position.bytes_read = min(file.size, source.tell())


def _bounded_values(batch: pyarrow.RecordBatch, max_bytes: int) -> list[tuple[Any, str | None]]:
    """Return the rows as `_values` does; a row larger than `max_bytes` has a problem instead of a value."""
    if batch.nbytes <= max_bytes:
        return _values(batch)
    values: list[tuple[Any, str | None]] = []
    for at in range(len(batch)):
        row = batch.slice(at, 1)
        # The size of a slice includes the complete dictionary, although that belongs to all rows.
        size = sum(column.nbytes for column in row.columns if not pyarrow.types.is_dictionary(column.type))
        values += [(None, TOO_LARGE)] if size > max_bytes else _values(row)
    return values


def _values(batch: pyarrow.RecordBatch) -> list[tuple[Any, str | None]]:
    """Return (value, problem) of each row; text that is not UTF-8 or a map with a repeated key affects one row only.

    A map becomes a dict, like the object that it is in a JSON file.
    """
    maps = {"maps_as_pydicts": "strict"} if any(map(_holds_map, batch.schema.types)) else {}
    try:
        return [(row, None) for row in batch.to_pylist(**maps)]
    except (UnicodeDecodeError, KeyError) as error:
        if len(batch) == 1:
            return [(None, KEY_TWICE if isinstance(error, KeyError) else NOT_UTF8)]
        # pyarrow does not report which row is invalid, so the rows are converted one by one.
        return [_values(batch.slice(at, 1))[0] for at in range(len(batch))]


def _holds_map(kind: pyarrow.DataType) -> bool:
    """Return whether values of this type contain a map at any depth."""
    if pyarrow.types.is_map(kind):
        return True
    return any(_holds_map(kind.field(number).type) for number in range(kind.num_fields))


class _PyarrowErrors:
    """Context manager that turns errors of pyarrow into a DataError that names the file."""

    def __init__(self, file: InputFile) -> None:
        self.file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (pyarrow.ArrowException, OSError, UnicodeDecodeError)):
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{self.file.path}: not a readable {self.file.format} file ({reason}); check that it is complete"
            ) from error


READERS: dict[str, Reader] = {"parquet": read_parquet, "arrow": read_arrow}
