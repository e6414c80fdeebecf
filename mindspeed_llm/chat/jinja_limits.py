"""Limits of a template in Jinja: how much it may compute for one row.

A template comes with a downloaded model, so it may be hostile or simply wrong. The sandbox keeps it away from Python;
these limits keep it from using up time and memory. They are counted before a text is made, not afterwards:

    steps      iterations of loops; a call counts as four of them        1,000,000 for each rendering of a row
    text       characters of all texts that it makes, 64 for each entry   4 times the size below
               of a list
    output     UTF-8 bytes of the rendered row                            64 MiB
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_STEPS = 1_000_000
MAX_OUTPUT = 64 << 20
MAX_TEXT = 4 * MAX_OUTPUT  # a template builds a row from many pieces, and each operator makes a new text
CALL = 4  # steps of a call, which takes longer than an iteration
ENTRY = 64  # characters that an entry of a list counts: about its size in bytes
MAX_WIDTH = 1_000  # padding and precision of a format
MAX_BITS = 10_000  # of a whole number
# The width and precision of a field of "%": "%(name)-20.5s".
FIELD = re.compile(r"%(?:\([^)]*\))?[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?")
NESTED_FIELD = re.compile(r"\{[^{}]*\{")


class LimitExceededError(Exception):
    """A template exceeds a limit; the message continues the sentence "the chat template ..."."""


class RenderBudget:
    """What the current rendering has used up."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a rendering."""
        self.steps = self.text = 0

    def step(self, count: int = 1) -> None:
        """Count an iteration, or `count` of them.

        Raises:
            LimitExceededError: there are too many.
        """
        self.steps += count
        if self.steps > MAX_STEPS:
            raise LimitExceededError(f"takes more than {MAX_STEPS:,} loop iterations")

    def spend(self, size: int) -> None:
        """Count `size` characters or entries that are about to be made.

        Raises:
            LimitExceededError: there are too many.
        """
        self.text += size
        if self.text > MAX_TEXT:
            raise LimitExceededError(f"makes more than {MAX_TEXT >> 20} MiB of text")

    def spend_result(self, result: Any) -> Any:
        """Count a text or list that has been made, and return it."""
        if isinstance(result, str):
            self.spend(len(result))
        elif isinstance(result, (list, tuple)):
            self.spend(ENTRY * len(result))
        return result

    def counted(self, values: Iterable[Any], size: int = 0) -> Iterator[Any]:
        """Yield `values`; each is an iteration in which the template writes up to `size` constant characters."""
        for value in values:
            self.step()
            self.spend(size)
            yield value

    def text_size(self, value: Any) -> int:
        """Return about how many characters str(value) has, without making it.

        Raises:
            LimitExceededError: they are too many.
        """
        if isinstance(value, str):
            return len(value)
        size, pending = 0, [value]
        while pending:
            entry = pending.pop()
            if isinstance(entry, Mapping):
                pending += [*entry.keys(), *entry.values()]
            elif isinstance(entry, (list, tuple, set, frozenset)):
                pending += entry
            # A digit has more than three bits.
            size += len(entry) + 4 if isinstance(entry, str) else entry.bit_length() // 3 if type(entry) is int else 4
            if size + len(pending) > MAX_TEXT:
                raise LimitExceededError(f"makes more than {MAX_TEXT >> 20} MiB of text")
            if isinstance(entry, (Mapping, list, tuple, set, frozenset)):
                self.step(CALL)
        return size

    def check_operator(self, operator: str, left: Any, right: Any) -> None:
        """Count the result of an operator between two values before it is made.

        Raises:
            LimitExceededError: it is too large, or a field of a format is too wide.
        """
        if operator == "*":
            if isinstance(left, int) and isinstance(right, int):
                _check_number(left.bit_length() + right.bit_length())
            elif isinstance(left, (str, list, tuple)) and isinstance(right, int):
                self.spend(_size(left) * max(0, right))
            elif isinstance(right, (str, list, tuple)) and isinstance(left, int):
                self.spend(_size(right) * max(0, left))
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int):
                _check_number(left.bit_length() * right)
        elif isinstance(left, str):  # "%"
            self.check_percent_format(left, right)

    def check_percent_format(self, text: str, values: Any) -> None:
        """Count the result of formatting with %.

        Raises:
            LimitExceededError: it is too large, or a field is too wide.
        """
        for width, precision in FIELD.findall(text):
            if any(number == "*" or int(number or 0) > MAX_WIDTH for number in (width, precision)):
                raise LimitExceededError(f"formats with a width over {MAX_WIDTH:,}")
        self.spend(len(text) + text.count("%") * self.text_size(values))

    def check_method(self, owner: Any, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Count the result of a method of a text before it is made; other methods only read or shorten their text.

        Raises:
            LimitExceededError: the result is too large, or its size cannot be known before.
        """
        if not isinstance(owner, str):
            if name == "to_bytes":
                raise LimitExceededError("calls to_bytes, which is not allowed")
            return
        values = [*arguments, *named.values()]
        if name in ("center", "ljust", "rjust", "zfill"):
            self.spend(max((value for value in values if isinstance(value, int)), default=0))
        elif name == "replace" and len(values) >= 2:
            self.check_replacement(owner, values[0], values[1])
        elif name == "join" and values:
            self.spend(len(owner) * len(values[0]) + self.text_size(values[0]))
        elif name in ("format", "format_map"):
            numbers = map(int, re.findall(r"\d+", owner))
            if NESTED_FIELD.search(owner) or any(number > MAX_WIDTH for number in numbers):
                raise LimitExceededError(f"formats with a width over {MAX_WIDTH:,}")
            self.spend(len(owner) + owner.count("{") * self.text_size(values))
        elif name in ("expandtabs", "translate", "maketrans"):
            raise LimitExceededError(f"calls {name}, which is not allowed")

    def check_replacement(self, text: Any, old: Any, new: Any) -> None:
        """Count the result of replacing one text by another."""
        if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
            self.spend(len(text) + text.count(old) * len(new))


def _size(value: str | list[Any] | tuple[Any, ...]) -> int:
    return len(value) if isinstance(value, str) else ENTRY * len(value)


def _check_number(bits: int) -> None:
    if bits > MAX_BITS:
        raise LimitExceededError(f"makes a number of more than {MAX_BITS:,} bits")
