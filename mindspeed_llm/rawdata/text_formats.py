"""Read the rows of JSON, JSON Lines, CSV and plain text files, compressed or not."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.csv_lines import CsvLines
from mindspeed_llm.rawdata.input_files import InputFile
from mindspeed_llm.rawdata.json_splitter import PIECE, InvalidJsonError, JsonSplitter, parse_json, parse_value
from mindspeed_llm.rawdata.row import BROKEN_JSON, NOT_UTF8, Numbered, Reader, ReadPosition
from mindspeed_llm.rawdata.row_limits import TOO_LARGE, row_excerpt

LineReader = Callable[[InputFile, Iterable[tuple[int, bytes]]], Numbered]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WRONG_CELLS = "more or fewer cells than columns"


def read_json(file: InputFile, position: ReadPosition) -> Numbered:
    """Yield (line, value, problem) of each row of a JSON file: an array of rows, or rows one after another.

    The latter are JSON Lines in a .json file, or objects over several lines. If the first row is a complete line, each
    row is taken for a line. An invalid row whose end is known has a problem.

    Raises:
        DataError: the file is neither, or damaged; with the line.
    """
    with open_file(file) as streams:
        stream = _TrackedStream(*streams, position)
        line = 1
        while (first := stream.readline(PIECE)) and not first.strip():
            # A piece without a line ending is a part of its line only.
            line += first.endswith(b"\n")
        opening = first.lstrip()[:1]
        if opening not in (b"[", b"{"):
            raise DataError(f"{file.path}:{line}: bad JSON: neither an array nor an object; the file must contain rows")
        if opening == b"{" and _is_whole_line(first):
            yield from json_values(
                file, _chain((line, first), bounded_lines(stream.readline, file.row_bytes, line + 1))
            )
            return
        splitter = JsonSplitter(first.lstrip(), line, stream.read, file.row_bytes)
        try:
            yield from splitter.elements() if opening == b"[" else splitter.values()
        except InvalidJsonError as error:
            raise DataError(f"{file.path}:{error.line}: bad JSON: {error}; correct the file") from error


def _is_whole_line(line: bytes) -> bool:
    """Return whether `line` is JSON that ends with the line."""
    try:
        parse_json(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n")


def read_json_lines(file: InputFile, position: ReadPosition) -> Numbered:
    """Yield (line, value, problem) of each line that is not blank, one JSON value each.

    Raises:
        DataError: the file cannot be read.
    """
    with open_file(file) as stream:
        lines = bounded_lines(_track(stream, position).readline, file.row_bytes)
        yield from json_values(file, lines)


def json_values(file: InputFile, lines: Iterable[tuple[int, bytes]]) -> Numbered:
    """Yield (line, value, problem) of numbered lines of JSON; a line that is not JSON is an invalid row."""
    return _parsed_lines(file, lines, _parse_json_line)


def _parse_json_line(text: bytes) -> tuple[Any, str | None]:
    try:
        return parse_value(text)
    except json.JSONDecodeError:
        return text.decode().strip(), BROKEN_JSON


def _parsed_lines(
    file: InputFile, lines: Iterable[tuple[int, bytes]], parse: Callable[[bytes], tuple[Any, str | None]]
) -> Numbered:
    """Yield (line, value, problem) of numbered lines that are not blank; `parse` returns value and problem."""
    for line, text in lines:
        if _too_large(text, file.row_bytes):
            yield line, row_excerpt(text), TOO_LARGE
        elif not text.isspace():
            yield line, *parse(text)


def bounded_lines(
    readline: Callable[[int], bytes], max_bytes: int, first: int = 1, piece: int = PIECE
) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of each line; of a line that is too large only the beginning.

    Args:
        readline: reads at most the given number of bytes of the current line.
        max_bytes: size limit of a line in bytes, without the line ending.
        first: number of the first line.
        piece: bytes per call in which the rest of a line that is too large is skipped.
    """
    number = first
    while text := readline(max_bytes + 2):  # two more for the line ending, which does not count
        yield number, text
        while text and not text.endswith(b"\n"):
            text = readline(piece)
        number += 1


def _too_large(line: bytes, max_bytes: int) -> bool:
    """Return whether `line` has more than `max_bytes` bytes, without the line ending."""
    return len(line) > max_bytes and len(line.rstrip(b"\r\n")) > max_bytes


def read_csv(file: InputFile, position: ReadPosition) -> Numbered:
    """Yield (line, row, problem) of each row of a CSV file, whose first line has the names of the columns.

    Every value is text. A cell may contain line breaks if it is quoted.

    Raises:
        DataError: the file is not CSV, or two columns have the same name.
    """
    # The limit of a row applies instead of the one that the module has for a cell, which is stored as a C long.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_file(file) as stream:
        lines = CsvLines(_track(stream, position).readline, file.row_bytes)
        reader = csv.reader(lines, strict=True)
        line = 1
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns):
                raise DataError(f"{file.path}:1: two columns have the same name; rename one of them")
            if lines.too_large:
                raise DataError(f"{file.path}:1: the line with the names of the columns is {TOO_LARGE}")
            line = lines.begin_row()
            for cells in reader:
                if lines.too_large:
                    yield line, row_excerpt(lines.beginning), TOO_LARGE
                elif cells:
                    yield line, *_csv_row(columns, cells)
                line = lines.begin_row()
        except csv.Error as error:
            raise DataError(f"{file.path}:{line}: bad CSV: {error}; correct the file") from error


def _csv_row(columns: list[str], cells: list[str]) -> tuple[Any, str | None]:
    """Return the row as a dict, and the problem if it has one."""
    if len(cells) != len(columns):
        return cells, WRONG_CELLS
    row = dict(zip(columns, cells, strict=True))
    return row, None if all(_is_unicode(cell) for cell in cells) else NOT_UTF8


def read_text(file: InputFile, position: ReadPosition) -> Numbered:
    """Yield (line, row, problem) of each line that is not blank; the row has one column, 'text'.

    Raises:
        DataError: the file cannot be read.
    """
    with open_file(file) as stream:
        lines = bounded_lines(_track(stream, position).readline, file.row_bytes)
        yield from text_values(file, lines)


def text_values(file: InputFile, lines: Iterable[tuple[int, bytes]]) -> Numbered:
    """Yield (line, row, problem) of numbered lines of text."""
    return _parsed_lines(file, lines, _parse_text_line)


def _parse_text_line(raw: bytes) -> tuple[Any, str | None]:
    text = raw.decode(errors="surrogateescape").rstrip("\r\n")
    return {"text": text}, None if _is_unicode(text) else NOT_UTF8


def _is_unicode(text: str) -> bool:
    """Return whether `text` contains no bytes that were decoded with surrogateescape."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _TrackedStream:
    """A binary stream without a byte order mark that updates `position` with the bytes of the file read so far."""

    def __init__(self, raw: BinaryIO, stream: BinaryIO, position: ReadPosition) -> None:
        self.raw, self.stream, self.position, self.at_beginning = raw, stream, position, True

    def read(self, size: int) -> bytes:
        return self._count(self.stream.read(size))

    def readline(self, limit: int = -1) -> bytes:
        return self._count(self.stream.readline(limit))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _count(self, read: bytes) -> bytes:
        # Progress counts bytes on disk, which are those before decompression.
        if self.raw is self.stream:
            self.position.bytes_read += len(read)
        else:
            self.position.bytes_read = self.raw.tell()
        if self.at_beginning:
            self.at_beginning = False
            read = read.removeprefix(BYTE_ORDER_MARK)
        return read


@contextlib.contextmanager
def open_file(file: InputFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file and yield two binary streams: the file itself, and its content after decompression.

    Raises:
        DataError: the compressed data are damaged, or the file cannot be read.
    """
    try:
        with file.path.open("rb") as raw:
            yield raw, _decompressed(raw, file.compression)
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{file.path}: cannot be read ({error}); check that it is complete") from error


def _decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    """Return the decompressed stream of `raw`, or `raw` itself."""
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), PIECE)
    if compression == "zstd":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), PIECE)
    return raw


def _track(streams: tuple[BinaryIO, BinaryIO], position: ReadPosition) -> _TrackedStream:
    return _TrackedStream(*streams, position)


def _chain(first: tuple[int, bytes], rest: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from rest


READERS: dict[str, Reader] = {"json": read_json, "jsonl": read_json_lines, "csv": read_csv, "txt": read_text}
# Readers that can begin in the middle of a file.
LINE_READERS: dict[str, LineReader] = {"jsonl": json_values, "txt": text_values}
