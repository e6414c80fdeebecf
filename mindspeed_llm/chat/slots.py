"""Slots of a chat template: parsed from JSON, and filled with a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from mindspeed_llm.chat.renderer import Span

CONTENT, INDEX = "{{content}}", "{{idx}}"


class TemplateSlot(NamedTuple):
    """One parsed slot: its text is `head` + message + `tail` if it contains the message, otherwise `head`."""

    kind: Literal["text", "token", "begin", "end"]
    head: str
    tail: str = ""
    has_content: bool = False


def parse_slot(slot: Any) -> TemplateSlot | None:
    """Parse a slot from its JSON value; return None if the value is not a slot."""
    if isinstance(slot, str):
        head, mark, tail = slot.partition(CONTENT)
        if CONTENT not in tail:
            return TemplateSlot("text", head, tail, bool(mark))
    elif isinstance(slot, dict) and len(slot) == 1:
        ((key, value),) = slot.items()
        if key == "special" and value in ("begin", "end"):
            return TemplateSlot(value, "")
        if key == "token" and isinstance(value, str) and value:
            return TemplateSlot("token", value)
    return None


class SlotFiller:
    """Fill the slots of one field of a template. The spans without the message are prepared once.

    Args:
        slots: the slots; at most one of them contains the message.
        trained: whether the spans are trained.
    """

    def __init__(self, slots: Sequence[TemplateSlot], trained: bool) -> None:
        self._slots, self._trained = slots, trained
        self._numbered = any(INDEX in slot.head or INDEX in slot.tail for slot in slots)
        self._of_number: dict[int, SlotFiller] = {}
        index = next((number for number, slot in enumerate(slots) if slot.has_content), len(slots))
        self._head, self._tail = (slots[index].head, slots[index].tail) if index < len(slots) else ("", "")
        self._before, self._after = self._fixed_spans(slots[:index]), self._fixed_spans(slots[index + 1 :])

    def _fixed_spans(self, slots: Sequence[TemplateSlot]) -> list[Span]:
        """Return the spans of slots without the message; empty text is left out."""
        return [Span(slot.kind, slot.head, self._trained) for slot in slots if slot.kind != "text" or slot.head]

    def fixed(self, number: int) -> list[Span]:
        """Return the spans of slots that do not contain the message; the caller must not change the list.

        Args:
            number: number of the turn, which replaces {{idx}}.
        """
        return self._with_number(number)._before if self._numbered else self._before

    def fill(
        self,
        number: int,
        message: str,
        before: str = "",
        content: tuple[int, int] | None = None,
        *,
        is_message: bool = True,
    ) -> list[Span]:
        """Return the spans of the slots; empty text is left out.

        Args:
            number: number of the turn, which replaces {{idx}}.
            message: text that replaces {{content}}, after `before`.
            before: text before the message.
            content: characters of `message` that truncation may cut (first, last + 1); None for all.
            is_message: whether truncation may cut any of them.
        """
        if self._numbered:
            return self._with_number(number).fill(number, message, before, content, is_message=is_message)
        text = f"{self._head}{before}{message}{self._tail}"
        if not text:
            return self._before + self._after
        first, last = content or (0, len(message))
        start = len(self._head) + len(before)
        bounds = (start + first, start + last) if is_message else (0, 0)
        return [*self._before, Span("text", text, self._trained, bounds), *self._after]

    def _with_number(self, number: int) -> SlotFiller:
        """Return a filler of the slots in which {{idx}} is replaced by `number`."""
        if number not in self._of_number:
            text = str(number)
            slots = [
                slot._replace(head=slot.head.replace(INDEX, text), tail=slot.tail.replace(INDEX, text))
                for slot in self._slots
            ]
            self._of_number[number] = SlotFiller(slots, self._trained)
        return self._of_number[number]
