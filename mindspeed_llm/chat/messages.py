"""What one message of a conversation holds: its text, calls of functions, a thought, and whether it is to be trained.

    {"role": "assistant", "content": "5", "reasoning_content": "2 and 3.", "weight": 0}
    Message(role="assistant", text="5", thought="2 and 3.", trained=False)

The fields have the names that services and other tools give them, whatever the columns are called (--map-keys).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mindspeed_llm.chat.conversation import FunctionCall, InvalidRowError
from mindspeed_llm.chat.tool_formats import parse_calls

# The thought of an answer beside its text.
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
# OpenAI's tool_calls, and function_call as it was before them.
CALLS = ("tool_calls", "function_call")
# 0 or false: not to be trained; OpenAI has weight, ms-swift loss and loss_scale, axolotl train and training.
MARKS = ("weight", "loss", "train", "training", "trainable", "loss_weight", "loss_scale", "loss_mask")
# Types of the parts of a content that are thoughts.
THOUGHT_PARTS = ("thinking", "reasoning")
MASKED = "masked"  # torchtune's, the other way round
OLD_REPLY = "function"  # the role of a reply to a function_call, if no tag has that name


class Message(NamedTuple):
    """One message, or several replies of tools in a row.

    Attributes:
        role: as the row has it; that of an old reply is the tag of observations.
        calls: functions that an answer calls, after its text.
        replies: further replies of tools after `text`.
        thought: what an answer says before its text; "" if it has none, or if thoughts are not read.
        trained: False if the data mark the message as not to be trained.
    """

    role: str
    text: str
    calls: tuple[FunctionCall, ...] = ()
    replies: tuple[str, ...] = ()
    thought: str = ""
    trained: bool = True


class MessageReader:
    """Reads the messages of conversations.

    Args:
        tags: names of fields and roles, see SharegptHandler.TAGS.

    Attributes:
        unread: fields with text that were found in messages and are not read.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = tags
        self.unread: set[str] = set()
        self.read_reasoning(True)

    def read_reasoning(self, asked: bool) -> None:
        """Read thoughts that stand in fields of their own, or count these fields as unread."""
        tags = self._tags
        self._thoughts = asked
        self._read_of_any = {tags["role_tag"], tags["content_tag"], *MARKS, MASKED}
        of_answers = {*self._read_of_any, *(THOUGHTS if asked else ())}
        self._read_of = {tags["function_tag"]: of_answers, tags["assistant_tag"]: {*of_answers, *CALLS}}

    def read(self, message: Any) -> Message:
        """Return what `message` holds.

        Raises:
            BadRow: it has no role, text or calls that can be used; a mark that is neither 0 nor 1.
        """
        if not isinstance(message, dict):
            raise InvalidRowError("message is not an object")
        tags = self._tags
        role = message.get(tags["role_tag"])
        if not isinstance(role, str):
            raise InvalidRowError("message has no role")
        content, trained, thought = message.get(tags["content_tag"]), True, ""
        if isinstance(content, list):
            content, thought = self._joined(content, role)
        if len(message) > 2:
            known = self._read_of.get(role, self._read_of_any)
            self.unread.update(name for name in message.keys() - known if _holds_text(message[name]))
            trained = is_trained_message(message)
        if role == tags["system_tag"]:  # an empty one means the template's default
            return Message(role, message_text(content, "system", required=False), trained=trained)
        if role == tags["function_tag"]:
            return Message(
                role, "", parse_calls(message_text(content, "message")), (), self._thought(message, ""), trained
            )
        if role == tags["assistant_tag"]:
            calls = _calls(message)
            text = message_text(content, "message", required=not calls)
            return Message(role, text, calls, (), self._thought(message, thought), trained)
        if role == OLD_REPLY and OLD_REPLY not in tags.values():
            role = tags["observation_tag"]
        if role == tags["observation_tag"] and content == "":  # a function may have nothing to say
            return Message(role, "", trained=trained)
        return Message(role, message_text(content, "message"), trained=trained)

    def _joined(self, parts: list[Any], role: str) -> tuple[str, str]:
        """(text, thought) of a content in parts; only answers have thoughts."""
        texts: list[str] = []
        thoughts: list[str] = []
        for part in parts:
            if not isinstance(part, dict):
                raise InvalidRowError("message is not text")
            if part.get("type") in THOUGHT_PARTS and role == self._tags["assistant_tag"]:
                names = (*THOUGHTS, "text")
                thoughts.append(next((part[name] for name in names if isinstance(part.get(name), str)), ""))
            elif part.get("type") not in THOUGHT_PARTS and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                raise InvalidRowError("message is not text")
        thought = "".join(thoughts)
        if thought and not self._thoughts:
            self.unread.add(f"{self._tags['content_tag']} of type {THOUGHT_PARTS[0]}")
        return "".join(texts), thought

    def _thought(self, message: Mapping[str, Any], in_parts: str) -> str:
        """The thought of an answer, from its fields or the parts of its content; a field that is no text is unread.

        Raises:
            BadRow: two different thoughts.
        """
        if not self._thoughts:
            return ""
        found = {message_text(in_parts, "thought", required=False)}
        for name in THOUGHTS:
            value = message.get(name)
            if isinstance(value, str):
                found.add(message_text(value, name, required=False))
            elif _holds_text(value):
                self.unread.add(name)
        found.discard("")
        if len(found) > 1:
            raise InvalidRowError("an answer has two different thoughts")
        return found.pop() if found else ""


def message_text(value: Any, what: str, required: bool = True) -> str:
    """Return `value` if it is text that can be tokenised; "" for a missing one that is not required.

    Raises:
        BadRow: it is missing, empty or no text; the reason names `what`.
    """
    if value is None:
        if required:
            raise InvalidRowError(f"{what} is missing")
        return ""
    if not isinstance(value, str):
        raise InvalidRowError(f"{what} is not text")
    if required and not value.strip():
        raise InvalidRowError(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON's escapes allow
        raise InvalidRowError(f"{what} is not Unicode text") from None
    return value


def is_trained_message(message: Mapping[str, Any]) -> bool:
    """Return whether the marks of a message, if it has any, let it be trained.

    Raises:
        BadRow: a mark that is neither 0 nor 1, false nor true.
    """
    trained = True
    for name in (*MARKS, MASKED):
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            shown = f"{value:.3g}" if isinstance(value, float) else json.dumps(value, default=str)[:20]
            raise InvalidRowError(f"{name} of a message is {shown}: only 0 and 1, or false and true, are read")
        trained = trained and bool(value) != (name == MASKED)
    return trained


def _calls(message: Mapping[str, Any]) -> tuple[FunctionCall, ...]:
    """The calls of an answer; both fields may name the same ones.

    Raises:
        BadRow: they are no calls, or differ.
    """
    found = {parse_calls(value) for name in CALLS if not _is_nothing(value := message.get(name))}
    if len(found) > 1:
        raise InvalidRowError("tool_calls and function_call of an answer differ")
    return found.pop() if found else ()


def _is_nothing(value: Any) -> bool:
    """Whether a field has no calls: empty, or the nulls that a columnar file has in their place."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return not value or (isinstance(value, dict) and not _holds_text(value))


def _holds_text(value: Any) -> bool:
    """Whether there is text in a value, at any depth."""
    open_ones = [value]
    while open_ones:
        one = open_ones.pop()
        if isinstance(one, str) and one.strip():
            return True
        if isinstance(one, dict):
            open_ones += one.values()
        elif isinstance(one, list):
            open_ones += one
    return False
