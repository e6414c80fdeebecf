"""Rows of JSON, JSON lines, CSV and plain text files, plain or compressed."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, BinaryIO, NoReturn

from mindspeed_llm.errors import DataError
from mindspeed_llm.rawdata.cleaning import MARK, Utf8Cleaner
from mindspeed_llm.rawdata.files import InputFile
from mindspeed_llm.rawdata.reader import BROKEN_JSON, NOT_UTF8, Numbered, Position, Reader

Pieces = Iterator[tuple[int, bytes]]  # (line, text)
LineReader = Callable[[InputFile, Iterable[tuple[int, bytes]]], Numbered]
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WRONG_CELLS = "more or fewer cells than columns"


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value


STRICT_JSON = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number)  # NaN and Infinity are Python's own
MARK_BYTES = MARK.encode()
PIECE = 1 << 16  # a JSON array may be one line of gigabytes: it is read in pieces


def read_json(file: InputFile, position: Position) -> Numbered:
    """An array of rows, or rows one after another: JSON lines under a .json name, or objects over many lines.

    Where the first row is a line, every line is one. Else the parser is fed line by line, so that what it finds, and
    what it stumbles over, is known by its line. An array that begins with a row on each line is read line by line as
    long as that is so, which is faster.
    """
    import ijson

    with _open(file) as stream:
        cleaner, watched = Utf8Cleaner(), _watched(stream, position)
        pieces = _pieces(watched)
        start_line, first = next(((line, piece) for line, piece in pieces if piece.strip()), (1, b""))
        opening = first.lstrip()[:1]
        if opening not in (b"[", b"{"):
            raise DataError(f"{file.path}:{start_line}: bad JSON: neither an array nor an object; rows are wanted")
        if opening == b"{" and _is_whole_line(first):
            yield from json_values(file, _chain((start_line, first), enumerate(watched, start=start_line + 1)))
            return
        array = opening == b"["
        pieces, told = _chain((start_line, first), pieces), b""
        if first.strip() == b"[" and first.endswith(b"\n"):
            told, start_line, pieces = yield from _whole_lines(pieces)
        found = ijson.sendable_list()
        parser = ijson.items_coro(found, "item" if array else "", use_float=True, multiple_values=not array)
        line, begun = start_line, start_line
        between = True  # no row is open: the next text starts one
        if told:
            parser.send(told)
            found.clear()
        try:
            for line, piece in cleaner.cleaned(pieces):
                if between and piece.strip(b" \t\r\n,[]"):
                    begun, between = line, False
                parser.send(piece)
                for value in found:
                    yield begun, value, NOT_UTF8 if cleaner.spoilt(value) else None
                    begun, between = line, not piece.rstrip().endswith(b"{")  # "}, {" begins the next row
                found.clear()
            parser.close()
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f"{file.path}:{line}: bad JSON: {_reason(error)}; correct the file") from error


def _whole_lines(pieces: Pieces) -> Generator[tuple[int, Any, None], None, tuple[bytes, int, Pieces]]:
    """The rows of an array, as long as each is a line.

        [                  told       the rest
        {"a": 1},          [{},       {
        {                               "a": 2
          "a": 2                      }]
        }]

    Args:
        pieces: from that of the bracket on.

    Returns:
        what a parser of the rest is to be told of what was before it, the last line that was read, and the rest.
    """
    line, _ = next(pieces)
    told = b"["
    for line, piece in pieces:
        text = piece.strip(b" \t\r\n")
        row = text.removesuffix(b",")
        whole = row.startswith(b"{") and piece.endswith(b"\n") and told != b"[{}"
        # Half a surrogate pair, perhaps, or what stands for one: Utf8Cleaner knows.
        if not whole or b"\\ud" in row or b"\\uD" in row or MARK_BYTES in row:
            return told, line, _chain((line, piece), pieces)
        try:
            value = STRICT_JSON.decode(row.decode())
        except (ValueError, RecursionError):
            return told, line, _chain((line, piece), pieces)
        yield line, value, None
        told = b"[{}" if len(row) == len(text) else b"[{},"
    return told, line, iter(())


def _is_whole_line(line: bytes) -> bool:
    """Whether it is JSON, and a line of its own."""
    try:
        json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n")


def read_json_lines(file: InputFile, position: Position) -> Numbered:
    """One JSON value on each line that is not blank."""
    with _open(file) as stream:
        yield from json_values(file, enumerate(_watched(stream, position), start=1))


def json_values(file: InputFile, lines: Iterable[tuple[int, bytes]]) -> Numbered:
    """The same for lines with their numbers; one that is no JSON is a bad row, since its end is known."""
    for line, text in lines:
        if text.isspace():
            continue
        try:
            value, problem = json.loads(text.decode()), None  # bytes would be taken for UTF-16 if they look so
        except UnicodeDecodeError:
            value, problem = text.decode(errors="replace").strip(), NOT_UTF8
        except (ValueError, RecursionError):
            value, problem = text.decode(errors="replace").strip(), BROKEN_JSON
        yield line, value, problem


def read_csv(file: InputFile, position: Position) -> Numbered:
    """The first line names the columns; every value is text. A cell may hold line breaks if it is quoted."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(file) as stream:
        lines = (text.decode(errors="surrogateescape") for text in _watched(stream, position))
        reader = csv.reader(lines, strict=True)
        line = 1
        try:
            columns = next(reader, [])
            if len(set(columns)) < len(columns):
                raise DataError(f"{file.path}:1: two columns have the same name; name them apart")
            line = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield line, *_csv_row(columns, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{file.path}:{line}: bad CSV: {error}; correct the file") from error


def _csv_row(columns: list[str], cells: list[str]) -> tuple[Any, str | None]:
    if len(cells) != len(columns):
        return cells, WRONG_CELLS
    row = dict(zip(columns, cells, strict=True))
    return row, None if all(_is_unicode(cell) for cell in cells) else NOT_UTF8


def read_text(file: InputFile, position: Position) -> Numbered:
    """Every line that is not blank is a row with the one column 'text'."""
    with _open(file) as stream:
        yield from text_values(file, enumerate(_watched(stream, position), start=1))


def text_values(file: InputFile, lines: Iterable[tuple[int, bytes]]) -> Numbered:
    """The same for lines with their numbers."""
    for line, raw in lines:
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

    def __init__(self, raw: BinaryIO, stream: BinaryIO, position: Position) -> None:
        self.raw, self.stream, self.position, self.fresh = raw, stream, position, True

    def readline(self, limit: int = -1) -> bytes:
        line = self.stream.readline(limit)
        if self.raw is self.stream:
            self.position.bytes_read += len(line)
        else:
            self.position.bytes_read = self.raw.tell()
        if self.fresh:
            self.fresh = False
            line = line.removeprefix(BYTE_ORDER_MARK)
        return line

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


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


def _watched(streams: tuple[BinaryIO, BinaryIO], position: Position) -> _Watched:
    return _Watched(*streams, position)


def _pieces(stream: _Watched) -> Iterator[tuple[int, bytes]]:
    """(line, text) in lines, or in pieces of one where it is long."""
    line = 1
    while piece := stream.readline(PIECE):
        yield line, piece
        line += piece.endswith(b"\n")


def _chain(first: tuple[int, bytes], rest: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from rest


def _reason(error: Exception) -> str:
    """yajl's complaint without the drawing under it."""
    text = str(error.args[0] if error.args else error)
    text = text.removeprefix("b'").removeprefix('b"').splitlines()[0].split("\\n")[0]
    return text.removeprefix("parse error: ").removeprefix("lexical error: ").strip()


READERS: dict[str, Reader] = {"json": read_json, "jsonl": read_json_lines, "csv": read_csv, "txt": read_text}
# Those that can begin in the middle of a file.
LINE_READERS: dict[str, LineReader] = {"jsonl": json_values, "txt": text_values}
