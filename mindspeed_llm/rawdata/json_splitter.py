"""JSON text of any size into the values that it holds, each with its line.

    [{"a": "]"}, 7,           line 1   {"a": "]"}
     {"b":                    line 1   7
       [1]}]                  line 2   {"b": [1]}

Objects that lie whole in what has been read are parsed where they are. Of any other value only brackets and strings are
looked at, until its end is known; then it is parsed like a line of JSON lines. Memory is that of one value and a piece
of the file; a value beyond the limits (row_limits.py) is passed over without being kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from mindspeed_llm.rawdata.row import BROKEN_JSON, NOT_UTF8, Numbered
from mindspeed_llm.rawdata.row_limits import DEPTH, ROW_MIB, SHOWN, TOO_DEEP, TOO_LARGE, is_nested_too_deep, row_excerpt

PIECE = 1 << 16
SPACE = re.compile(rb"[ \t\r\n]*")
BETWEEN_OBJECTS = {",": re.compile(r"[ \t\r\n]*,[ \t\r\n]*"), "": re.compile(r"[ \t\r\n]*")}
# Everything up to the next bracket, or up to a string that the text read so far does not end.
BETWEEN_BRACKETS = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]*(?:\\.[^"\\]*)*")*', re.DOTALL)
REST_OF_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
SCALAR = re.compile(rb"[^,\]\[{}\" \t\r\n]*")


def parse_json(text: str) -> Any:
    """Return what JSON text means, in whatever kind of file it stands.

    As Python reads it: integers of any size, NaN, and 1e999 as infinity. What has more digits than Python turns into an
    int is a Decimal. Such numbers matter only in a column that is read, where they make a bad row.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # too many digits
        return MANY_DIGITS.decode(text)


def _integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


DECODER, MANY_DIGITS = json.JSONDecoder(), json.JSONDecoder(parse_int=_integer)


def parse_value(text: bytes) -> tuple[Any, str | None]:
    """A value and what is wrong with it.

    Raises:
        JSONDecodeError: it is not JSON.
    """
    if is_nested_too_deep(text):
        return text.decode(errors="replace").strip(), TOO_DEEP
    try:
        return parse_json(text.decode()), None  # bytes would be taken for UTF-16 if they look so
    except UnicodeDecodeError:
        return text.decode(errors="replace").strip(), NOT_UTF8
    except RecursionError:
        return text.decode().strip(), BROKEN_JSON


class InvalidJsonError(Exception):
    """The text is not JSON.

    Attributes:
        line: where.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class JsonSplitter:
    """Splits one text.

    Args:
        first: how the text begins, without white space before the first value.
        line: its line.
        read: gives the next bytes; none at the end.
        most: size limit of one value in bytes.
    """

    def __init__(self, first: bytes, line: int, read: Callable[[int], bytes], most: int = ROW_MIB << 20) -> None:
        self._read, self._most = read, most
        self._start: int | None = None  # of the value that is being taken
        self._beginning = b""  # of that value, if it is too large to be kept
        self._text = bytearray(first)
        self._at = 0
        self._line, self._counted = line, 0  # line of the byte `_counted`

    def elements(self) -> Numbered:
        """(line, value, problem) of each value of an array.

        Raises:
            BrokenJson: at the first thing that is no part of an array, after the values before it.
        """
        self._at += 1
        opening = True
        while (found := self._next_byte()) != b"]" or not opening:
            if found == b"{":
                before = self._at
                yield from self._whole_objects(",")
                opening = opening and self._at == before
                found = self._next_byte()
            if found in (b"", b",", b"]"):
                raise self._broken("a value is missing" if found else "premature EOF")
            yield self._value()
            opening = False
            if (found := self._next_byte()) == b"]":
                break
            if found != b",":
                raise self._broken("neither ',' nor ']' after a value" if found else "premature EOF")
            self._at += 1
        self._at += 1
        if self._next_byte():
            raise self._broken("text after the end of the array")

    def values(self) -> Numbered:
        """(line, value, problem) of each of several values, one after another.

        Raises:
            BrokenJson: see `elements`.
        """
        while found := self._next_byte():
            if found == b"{":
                yield from self._whole_objects("")
                found = self._next_byte()
            if found and found in b",]}":
                raise self._broken(f"'{found.decode()}' between values")
            if found:
                yield self._value()

    def _whole_objects(self, separator: str) -> Numbered:
        """Take the objects from here on that lie whole, with what follows each, in the text read so far."""
        try:
            text = self._text[self._at :].decode()
        except UnicodeDecodeError as error:
            text = self._text[self._at : self._at + error.start].decode()
        line, between = self._count(self._at), BETWEEN_OBJECTS[separator]
        at = counted = 0
        while text.startswith("{", at):
            try:
                value, end = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError):
                break
            after = between.match(text, end)
            if after is None or end - at > self._most:
                break
            line += text.count("\n", counted, at)
            counted = at
            if text.count("[", at, end) + text.count("{", at, end) > DEPTH and is_nested_too_deep(
                text[at:end].encode()
            ):
                yield line, text[at:end], TOO_DEEP
            else:
                yield line, value, None
            at = after.end()
        self._at += at if text.isascii() else len(text[:at].encode())

    def _more(self) -> bool:
        """Read on; False at the end of the text. Of a value that is too large only the beginning is kept."""
        if self._start is not None and self._at - self._start > self._most:
            self._beginning = self._beginning or bytes(self._text[self._start : self._start + SHOWN])
            self._count(self._at)
            del self._text[self._start : self._at]
            self._at = self._counted = self._start
        piece = self._read(PIECE)
        self._text += piece
        return bool(piece)

    def _next_byte(self) -> bytes:
        """The next byte that is no white space, not taken; b"" at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return bytes(self._text[self._at : self._at + 1])
            self._forget()
            if not self._more():
                return b""

    def _forget(self) -> None:
        """Drop what has been taken, if that is much."""
        if self._at > PIECE:
            self._count(self._at)
            del self._text[: self._at]
            self._at = self._counted = 0

    def _value(self) -> tuple[int, Any, str | None]:
        """Take the value that begins here, and parse it.

        Raises:
            BrokenJson: it is none.
        """
        self._forget()
        self._start, self._beginning = self._at, b""
        line, text = self._bytes_of_value(self._start)
        self._start = None
        if self._beginning or len(text) > self._most:
            return line, row_excerpt(self._beginning or text), TOO_LARGE
        try:
            return line, *parse_value(text)
        except json.JSONDecodeError as error:
            raise InvalidJsonError(line + error.lineno - 1, error.msg) from error

    def _bytes_of_value(self, start: int) -> tuple[int, bytes]:
        """Take the value that begins here: its line and its bytes, as far as brackets and strings tell where it ends.

        Raises:
            BrokenJson: no value begins here, or the text ends inside it.
        """
        line = self._count(start)
        text, depth = self._text, 0
        while True:
            pattern = BETWEEN_BRACKETS if depth else SCALAR
            self._at = pattern.match(text, self._at).end()  # type: ignore[union-attr]
            if self._at == len(text):
                if self._more():
                    continue
                if depth or (self._at == start and not self._beginning):
                    raise InvalidJsonError(line, "premature EOF in the row that begins here")
                break
            found = text[self._at]
            begins = self._at == start and not self._beginning
            if found in b"{[" and (depth or begins):
                depth += 1
                self._at += 1
            elif found in b"}]" and depth:
                depth -= 1
                self._at += 1
            elif found == ord('"') and (depth or begins):
                self._string(line)
            else:  # of a scalar
                break
            if not depth:
                break
        if self._at == start and not self._beginning:
            raise self._broken(f"{chr(text[start])!r} is no value")
        return line, bytes(text[start : self._at])

    def _string(self, line: int) -> None:
        """Pass over the string that begins here, however long it is."""
        self._at += 1
        while True:
            self._at = REST_OF_STRING.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._text[self._at : self._at + 1] == b'"':
                self._at += 1
                return
            if not self._more():
                raise InvalidJsonError(line, "premature EOF in the row that begins here")

    def _count(self, at: int) -> int:
        """The line of the byte `at`, which is not before the last one asked for."""
        self._line += self._text.count(b"\n", self._counted, at)
        self._counted = at
        return self._line

    def _broken(self, reason: str) -> InvalidJsonError:
        """What is wrong here; at the end of the text that is the line of its last character."""
        if self._at >= len(self._text):
            end = len(self._text.rstrip(b" \t\r\n"))
            return InvalidJsonError(self._count(max(end, self._counted)), reason)
        return InvalidJsonError(self._count(self._at), reason)
