"""Split files into blocks that can be read independently; each row keeps its own file and line.

rows.jsonl     lines 1 … 900 | 901 … 1795 | …     at line ends, about every block_bytes
rows.parquet   row groups 0 1 2 | 3 4 5 | …
rows.json      one block, like rows.csv, .arrow and compressed files: their rows cannot be found from the middle
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.input_files import InputFile
from mindspeed_llm.rawdata.row import ReadPosition, Row
from mindspeed_llm.rawdata.row_reader import read_rows

PIECE = 1 << 20


@dataclass(frozen=True)
class FileBlock:
    """A part of one file.

    Attributes:
        file: the file.
        start: first byte of a text file, or first row group of a parquet file; None for a complete file.
        end: end of the block, in the same unit.
        first: number of the first line, or of the first row in a parquet file.
        bytes_read: bytes of the file up to the end of the block, for progress.
    """

    file: InputFile
    start: int | None
    end: int | None
    first: int
    bytes_read: int

    @property
    def where(self) -> str:
        """File and line of the first row."""
        return f"{self.file.path}:{self.first}"


def split_into_blocks(file: InputFile, block_bytes: int) -> Iterator[FileBlock]:
    """Yield the blocks of `file`, in order.

    Args:
        file: the file.
        block_bytes: approximate size of a block.

    Raises:
        DataError: the file cannot be read.
    """
    if file.size <= block_bytes or not is_splittable(file):
        yield FileBlock(file, None, None, 1, file.size)
    elif file.format == "parquet":
        yield from _row_group_blocks(file, block_bytes)
    else:
        yield from _line_blocks(file, block_bytes)


def is_splittable(file: InputFile) -> bool:
    """Return whether the rows of `file` can be found from its middle."""
    return file.compression is None and file.format in ("jsonl", "txt", "parquet")


def read_block(block: FileBlock, position: ReadPosition | None = None) -> Iterator[Row]:
    """Yield the rows of a block.

    Args:
        block: the block; unlike a complete file it may have no rows.
        position: progress, which is updated for a complete file only.

    Raises:
        DataError: see `read_rows`.
    """
    file, start, end = block.file, block.start, block.end
    if start is None or end is None:
        yield from read_rows([file], position)
        return
    if file.format == "parquet":
        from mindspeed_llm.rawdata.parquet_arrow import read_row_groups

        numbered = read_row_groups(file, range(start, end), block.first)
    else:
        from mindspeed_llm.rawdata.text_formats import LINE_READERS

        numbered = LINE_READERS[file.format](file, _lines_of(file, start, end, block.first))
    for line, value, problem in numbered:
        yield Row(str(file.path), line, value, problem)


def _line_blocks(file: InputFile, block_bytes: int) -> Iterator[FileBlock]:
    """Yield the blocks of a text file, split at line ends."""
    try:
        with file.path.open("rb") as stream:
            start, line = 0, 1
            while start < file.size:
                end, next_line = start, line
                while end - start < block_bytes and (data := stream.read(min(PIECE, block_bytes))):
                    end += len(data)
                    next_line += data.count(b"\n")
                rest = b" "
                # In pieces, because a line may be larger than the memory.
                while rest and not rest.endswith(b"\n"):
                    rest = stream.readline(PIECE)
                    end += len(rest)
                    next_line += rest.count(b"\n")
                if end == start:  # the file has become shorter
                    break
                yield FileBlock(file, start, end, line, end)
                start, line = end, next_line
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error}); check that it is complete") from error


def _row_group_blocks(file: InputFile, block_bytes: int) -> Iterator[FileBlock]:
    """Yield the blocks of a parquet file, each of complete row groups."""
    from mindspeed_llm.rawdata.parquet_arrow import row_group_sizes

    sizes = row_group_sizes(file)
    # Row groups have their size before compression. For progress it is scaled to the size of the file.
    total = max(1, sum(size for _, size in sizes))
    start, first, row, taken, before = 0, 1, 1, 0, 0
    for number, (rows, size) in enumerate(sizes, start=1):
        row += rows
        taken += size
        if taken >= block_bytes or number == len(sizes):
            before += taken
            yield FileBlock(file, start, number, first, file.size * before // total)
            start, first, taken = number, row, 0


def _lines_of(file: InputFile, start: int, end: int, first: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of the lines between two bytes of a file."""
    from mindspeed_llm.rawdata.text_formats import BYTE_ORDER_MARK, bounded_lines

    try:
        with file.path.open("rb") as stream:
            stream.seek(start)
            left = end - start

            def readline(limit: int) -> bytes:
                nonlocal left
                text = stream.readline(min(limit, left))
                if left and not text:
                    raise DataError(
                        f"{file.path}: has become shorter while it was read; start again when it is complete"
                    )
                # Only the beginning of a file has a byte order mark, not that of a later block.
                at_beginning, left = start == 0 and left == end, left - len(text)
                return text.removeprefix(BYTE_ORDER_MARK) if at_beginning else text

            yield from bounded_lines(readline, file.row_bytes, first)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read ({error}); check that it is complete") from error
