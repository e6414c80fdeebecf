"""Rows of JSON, JSON lines, CSV and plain text files, plain or compressed."""

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
    """An array of rows, or rows one after another: JSON lines under a .json name, or objects over many lines.

    Where the first row is a line, every line is one. A row that cannot be read is a bad one, if its end is known.

    Raises:
        DataError: what is neither; with the line.
    """
    with _open(file) as streams:
        stream = _Watched(*streams, position)
        line = 1
        while (first := stream.readline(PIECE)) and not first.strip():
            line += first.endswith(b"\n")
        opening = first.lstrip()[:1]
        if opening not in (b"[", b"{"):
            raise DataError(f"{file.path}:{line}: bad JSON: neither an array nor an object; rows are wanted")
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
    """Whether it is JSON, and a line of its own."""
    try:
        parse_json(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n")


def read_json_lines(file: InputFile, position: ReadPosition) -> Numbered:
    """One JSON value on each line that is not blank."""
    with _open(file) as stream:
        lines = bounded_lines(_watched(stream, position).readline, file.row_bytes)
        yield from json_values(file, lines)


def json_values(file: InputFile, lines: Iterable[tuple[int, bytes]]) -> Numbered:
    """The same for lines with their numbers; one that is no JSON is a bad row, since its end is known."""
    for line, text in lines:
        if _too_large(text, file.row_bytes):
            yield line, row_excerpt(text), TOO_LARGE
            continue
        if text.isspace():
            continue
        try:
            value, problem = parse_value(text)
        except json.JSONDecodeError:
            value, problem = text.decode().strip(), BROKEN_JSON
        yield line, value, problem


def bounded_lines(
    readline: Callable[[int], bytes], most: int, first: int = 1, piece: int = PIECE
) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of each line; of a line of more than `most` bytes, which is too large, the beginning.

    Args:
        first: number of the first line.
        piece: bytes at a time in which the rest of a line that is too large is passed over.
    """
    number = first
    while text := readline(most + 2):  # with the line's end, which does not count
        yield number, text
        while text and not text.endswith(b"\n"):
            text = readline(piece)
        number += 1


def _too_large(line: bytes, most: int) -> bool:
    return len(line) > most and len(line.rstrip(b"\r\n")) > most


def read_csv(file: InputFile, position: ReadPosition) -> Numbered:
    """The first line names the columns; every value is text. A cell may hold line breaks if it is quoted."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(file) as stream:
        lines = CsvLines(_watched(stream, position).readline, file.row_bytes)
        reader = csv.reader(lines, strict=True)
        line = 1
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns):
                raise DataError(f"{file.path}:1: two columns have the same name; name them apart")
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
    if len(cells) != len(columns):
        return cells, WRONG_CELLS
    row = dict(zip(columns, cells, strict=True))
    return row, None if all(_is_unicode(cell) for cell in cells) else NOT_UTF8


def read_text(file: InputFile, position: ReadPosition) -> Numbered:
    """Every line that is not blank is a row with the one column 'text'."""
    with _open(file) as stream:
        lines = bounded_lines(_watched(stream, position).readline, file.row_bytes)
        yield from text_values(file, lines)


def text_values(file: InputFile, lines: Iterable[tuple[int, bytes]]) -> Numbered:
    """The same for lines with their numbers."""
    for line, raw in lines:
        if _too_large(raw, file.row_bytes):
            yield line, row_excerpt(raw), TOO_LARGE
            continue
        if raw.isspace():
            continue
        text = raw.decode(errors="surrogateescape").rstrip("\r\n")
        yield line, {"text": text}, None if _is_unicode(text) else NOT_UTF8


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Watched:
    """A binary stream as lines, without a byte order mark, that keeps in `position` how far the file has been read."""

    def __init__(self, raw: BinaryIO, stream: BinaryIO, position: ReadPosition) -> None:
        self.raw, self.stream, self.position, self.fresh = raw, stream, position, True

    def read(self, size: int) -> bytes:
        return self._watched(self.stream.read(size))

    def readline(self, limit: int = -1) -> bytes:
        return self._watched(self.stream.readline(limit))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _watched(self, read: bytes) -> bytes:
        if self.raw is self.stream:
            self.position.bytes_read += len(read)
        else:
            self.position.bytes_read = self.raw.tell()
        if self.fresh:
            self.fresh = False
            read = read.removeprefix(BYTE_ORDER_MARK)
        return read


@contextlib.contextmanager
def _open(file: InputFile) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as it lies and its text after decompression, in bytes.

    Raises:
        DataError: damaged compression, or a file that cannot be read.
    """
    try:
        with file.path.open("rb") as raw:
            yield raw, _decompressed(raw, file.compression)
    except (gzip.BadGzipFile, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{file.path}: cannot be read ({error}); check that it is whole") from error


def _decompressed(raw: BinaryIO, compression: str | None) -> BinaryIO:
    if compression == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=raw), PIECE)
    if compression == "zstd":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), PIECE)
    return raw


def _watched(streams: tuple[BinaryIO, BinaryIO], position: ReadPosition) -> _Watched:
    return _Watched(*streams, position)


def _chain(first: tuple[int, bytes], rest: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from rest


READERS: dict[str, Reader] = {"json": read_json, "jsonl": read_json_lines, "csv": read_csv, "txt": read_text}
# Those that can begin in the middle of a file.
LINE_READERS: dict[str, LineReader] = {"jsonl": json_values, "txt": text_values}
