"""Split JSON text of any size into the values that it contains, each with its line.

    [{"a": "]"}, 7,           line 1   {"a": "]"}
     {"b":                    line 1   7
       [1]}]                  line 2   {"b": [1]}

Objects that are complete in the text read so far are parsed in place. Of any other value only brackets and strings
are scanned until its end is known; then it is parsed like a line of JSON Lines. The memory is that of one value and a
piece of the file. A value beyond the limits (row_limits.py) is skipped without being stored.
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
# Everything up to the next bracket, or up to a string whose end has not been read yet.
BETWEEN_BRACKETS = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]*(?:\\.[^"\\]*)*")*', re.DOTALL)
REST_OF_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
SCALAR = re.compile(rb"[^,\]\[{}\" \t\r\n]*")


def parse_json(text: str) -> Any:
    """Parse JSON text as Python does, whatever kind of file it comes from.

    Integers may have any size, NaN is allowed, and 1e999 is infinity. An integer with more digits than Python converts
    to an int is a Decimal. Such numbers matter only in a column that is used, where they make the row invalid.

    Raises:
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(text)
    # JSONDecodeError is a ValueError as well, but means that the text is not JSON.
    except json.JSONDecodeError:
        raise
    except ValueError:  # too many digits
        return MANY_DIGITS.decode(text)


def _integer(digits: str) -> int | Decimal:
    """Return an integer; a Decimal beyond the number of digits that Python converts."""
    try:
        return int(digits)
    except ValueError:
        return Decimal(digits)


DECODER, MANY_DIGITS = json.JSONDecoder(), json.JSONDecoder(parse_int=_integer)


def parse_value(text: bytes) -> tuple[Any, str | None]:
    """Parse the bytes of one value.

    Returns:
        The value and None; or the text as a str, with undecodable bytes replaced, and the reason why it is invalid.

    Raises:
        JSONDecodeError: the text is not JSON.
    """
    if is_nested_too_deep(text):
        return text.decode(errors="replace").strip(), TOO_DEEP
    try:
        return parse_json(text.decode()), None  # given bytes, json would guess UTF-16 or UTF-32
    except UnicodeDecodeError:
        return text.decode(errors="replace").strip(), NOT_UTF8
    except RecursionError:
        return text.decode().strip(), BROKEN_JSON


class InvalidJsonError(Exception):
    """The text is not JSON.

    Attributes:
        line: line of the error.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


class JsonSplitter:
    """Split one text into its values.

    Args:
        first: beginning of the text, without white space before the first value.
        line: line of this beginning.
        read: returns at most the given number of further bytes; none at the end.
        max_bytes: size limit of one value in bytes.
    """

    def __init__(self, first: bytes, line: int, read: Callable[[int], bytes], max_bytes: int = ROW_MIB << 20) -> None:
        self._read, self._max_bytes = read, max_bytes
        self._start: int | None = None  # of the value that is being read
        self._beginning = b""  # of that value, if it is too large to be stored
        self._text = bytearray(first)
        self._at = 0
        self._line, self._counted = line, 0  # line of the byte `_counted`

    def elements(self) -> Numbered:
        """Yield (line, value, problem) of each element of an array.

        Raises:
            InvalidJsonError: the text is not an array; raised after the values before the error.
        """
        self._at += 1
        # An empty array may end here. After a comma a value must follow.
        opening = True
        while (byte := self._next_byte()) != b"]" or not opening:
            if byte == b"{":
                before = self._at
                yield from self._complete_objects(",")
                opening = opening and self._at == before
                byte = self._next_byte()
            if byte in (b"", b",", b"]"):
                raise self._error("a value is missing" if byte else "premature EOF")
            yield self._take_value()
            opening = False
            if (byte := self._next_byte()) == b"]":
                break
            if byte != b",":
                raise self._error("neither ',' nor ']' after a value" if byte else "premature EOF")
            self._at += 1
        self._at += 1
        if self._next_byte():
            raise self._error("text after the end of the array")

    def values(self) -> Numbered:
        """Yield (line, value, problem) of each of several values that follow one another.

        Raises:
            InvalidJsonError: see `elements`.
        """
        while byte := self._next_byte():
            if byte == b"{":
                yield from self._complete_objects("")
                byte = self._next_byte()
            if byte and byte in b",]}":
                raise self._error(f"'{byte.decode()}' between values")
            if byte:
                yield self._take_value()

    def _complete_objects(self, separator: str) -> Numbered:
        """Yield the next objects that, with the separator after them, are complete in the text read so far.

        Args:
            separator: ',' in an array, '' between values.
        """
        try:
            text = self._text[self._at :].decode()
        except UnicodeDecodeError as error:
            # The text read so far may end inside a character, or contain bytes that are not UTF-8.
            text = self._text[self._at : self._at + error.start].decode()
        line, between = self._line_at(self._at), BETWEEN_OBJECTS[separator]
        at = counted = 0
        # The number of brackets is an upper bound of the depth that is cheap to compute, here of all objects at once.
        may_be_deep = text.count("[") + text.count("{") > DEPTH
        while text.startswith("{", at):
            try:
                value, end = DECODER.raw_decode(text, at)
            # Incomplete or invalid: `_take_value` reads on and decides.
            except (ValueError, RecursionError):
                break
            after = between.match(text, end)
            if after is None or end - at > self._max_bytes:
                break
            line += text.count("\n", counted, at)
            counted = at
            if (
                may_be_deep
                and text.count("[", at, end) + text.count("{", at, end) > DEPTH
                and is_nested_too_deep(text[at:end].encode())
            ):
                yield line, text[at:end], TOO_DEEP
            else:
                yield line, value, None
            at = after.end()
        self._at += at if text.isascii() else len(text[:at].encode())

    def _read_more(self) -> bool:
        """Read a piece and return whether there was one; of a value that is too large only the beginning is stored."""
        if self._start is not None and self._at - self._start > self._max_bytes:
            self._beginning = self._beginning or bytes(self._text[self._start : self._start + SHOWN])
            self._line_at(self._at)
            del self._text[self._start : self._at]
            self._at = self._counted = self._start
        piece = self._read(PIECE)
        self._text += piece
        return bool(piece)

    def _next_byte(self) -> bytes:
        """Return the next byte that is not white space, without consuming it; b"" at the end."""
        while True:
            self._at = SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return bytes(self._text[self._at : self._at + 1])
            self._drop_consumed()
            if not self._read_more():
                return b""

    def _drop_consumed(self) -> None:
        """Delete the consumed text if it is large."""
        if self._at > PIECE:
            self._line_at(self._at)
            del self._text[: self._at]
            self._at = self._counted = 0

    def _take_value(self) -> tuple[int, Any, str | None]:
        """Consume and parse the value that begins here.

        Raises:
            InvalidJsonError: it is not JSON.
        """
        self._drop_consumed()
        self._start, self._beginning = self._at, b""
        line, text = self._bytes_of_value(self._start)
        self._start = None
        if self._beginning or len(text) > self._max_bytes:
            return line, row_excerpt(self._beginning or text), TOO_LARGE
        try:
            return line, *parse_value(text)
        except json.JSONDecodeError as error:
            raise InvalidJsonError(line + error.lineno - 1, error.msg) from error

    def _bytes_of_value(self, start: int) -> tuple[int, bytes]:
        """Consume the value that begins here and return its line and bytes, by scanning brackets and strings only.

        Raises:
            InvalidJsonError: no value begins here, or the text ends inside it.
        """
        line = self._line_at(start)
        text, depth = self._text, 0
        while True:
            pattern = BETWEEN_BRACKETS if depth else SCALAR
            self._at = pattern.match(text, self._at).end()  # type: ignore[union-attr]
            # The match may have ended only because the text did. The next one continues from here.
            if self._at == len(text):
                if self._read_more():
                    continue
                if depth or (self._at == start and not self._beginning):
                    raise InvalidJsonError(line, "premature EOF in the row that begins here")
                break
            byte = text[self._at]
            begins = self._at == start and not self._beginning
            if byte in b"{[" and (depth or begins):
                depth += 1
                self._at += 1
            elif byte in b"}]" and depth:
                depth -= 1
                self._at += 1
            elif byte == ord('"') and (depth or begins):
                self._skip_string(line)
            else:  # the end of a scalar
                break
            if not depth:
                break
        if self._at == start and not self._beginning:
            raise self._error(f"{chr(text[start])!r} is not a value")
        return line, bytes(text[start : self._at])

    def _skip_string(self, line: int) -> None:
        """Consume the string that begins here, of any length."""
        self._at += 1
        while True:
            self._at = REST_OF_STRING.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._text[self._at : self._at + 1] == b'"':
                self._at += 1
                return
            if not self._read_more():
                raise InvalidJsonError(line, "premature EOF in the row that begins here")

    def _line_at(self, at: int) -> int:
        """Return the line of byte `at`, which is not before that of the last call."""
        self._line += self._text.count(b"\n", self._counted, at)
        self._counted = at
        return self._line

    def _error(self, reason: str) -> InvalidJsonError:
        """Return an error for the current line; at the end of the text for the line of its last character."""
        if self._at >= len(self._text):
            end = len(self._text.rstrip(b" \t\r\n"))
            return InvalidJsonError(self._line_at(max(end, self._counted)), reason)
        return InvalidJsonError(self._line_at(self._at), reason)
