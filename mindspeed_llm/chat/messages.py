"""Read one message of a conversation: its text, function calls, reasoning, and whether it is trained.

    {"role": "assistant", "content": "5", "reasoning_content": "2 and 3.", "weight": 0}
    Message(role="assistant", text="5", thought="2 and 3.", trained=False)

`--map-keys` renames the columns of a row, the fields of role and content, and the roles. Without it the names of
ShareGPT and of OpenAI are read. All other fields of a message are read under the names that OpenAI's API and other
training tools use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from mindspeed_llm.chat.conversation import FunctionCall, InvalidRowError, ReplySource
from mindspeed_llm.chat.tool_formats import parse_calls

# Fields with the reasoning of an answer.
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
# OpenAI's tool_calls, and its older function_call.
CALLS = ("tool_calls", "function_call")
# 0 or false: not trained. OpenAI uses `weight`, ms-swift `loss` and `loss_scale`, axolotl `train` and `training`.
MARKS = ("weight", "loss", "train", "training", "trainable", "loss_weight", "loss_scale", "loss_mask")
# Types of content parts that are reasoning.
THOUGHT_PARTS = ("thinking", "reasoning")
MASKED = "masked"  # torchtune's name, with the opposite meaning: true is not trained
SOURCE = ("name", "tool_call_id")  # fields of a tool's reply that say what it answers
OLD_REPLY = "function"  # OpenAI's role of a reply to a function_call; read as such unless a tag has this name
# Names of the roles, under the keys of `tags` in --map-keys. The first name is ShareGPT's, the second one OpenAI's; the
# others are those of Gemma, ms-swift and axolotl. A tag that is given replaces the names of its role.
ROLE_NAMES = {
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "model", "bot"),
    "observation_tag": ("observation", "tool", OLD_REPLY, "tool_response"),
    "function_tag": ("function_call", "tool_call"),
    "system_tag": ("system", "developer"),
}
ROLE_SHOWN = 40  # characters of an unknown role in a reason


class Message(NamedTuple):
    """One message, or several consecutive replies of tools.

    Attributes:
        role: "user", "assistant", "observation", "function" (an answer that consists of calls) or "system".
        text: text of the message.
        calls: functions that an answer calls, after its text.
        replies: further replies of tools after `text`.
        thought: reasoning before the text of an answer; "" if there is none, or if reasoning is not read.
        trained: False if the row marks the message as not to be trained.
        sources: what `text` and each of `replies` answers; empty if the row does not say, or if it is not read.
    """

    role: str
    text: str
    calls: tuple[FunctionCall, ...] = ()
    replies: tuple[str, ...] = ()
    thought: str = ""
    trained: bool = True
    sources: tuple[ReplySource, ...] = ()


class UnknownRoleError(InvalidRowError):
    """A message whose role is none of the known names; the handler adds the position of the message.

    Attributes:
        message: the message.
    """

    def __init__(self, role: str, message: Mapping[str, Any]) -> None:
        super().__init__(f"unknown role {role[:ROLE_SHOWN]!a}")
        self.message = message


class MessageReader:
    """Reader for the messages of conversations.

    Args:
        role_tag: field of the role.
        content_tag: field of the content.
        roles: name in the field of the role → role, see Message; from `named_roles`.
        unread: receives the names of message fields that contained text and were not read.

    Attributes:
        role_tag: field of the role.
    """

    def __init__(self, role_tag: str, content_tag: str, roles: Mapping[str, str], unread: set[str]) -> None:
        self.role_tag, self._content_tag, self._roles, self._unread = role_tag, content_tag, roles, unread
        self._thoughts, self._sources = True, False
        self._choose_fields()

    def read_reasoning(self, asked: bool) -> None:
        """Read reasoning fields if `asked`; otherwise count them as unread."""
        self._thoughts = asked
        self._choose_fields()

    def read_sources(self) -> None:
        """Read the ids of calls, and the fields of a tool's reply that say what it answers."""
        self._sources = True
        self._choose_fields()

    def _choose_fields(self) -> None:
        self._read_of_any = {self.role_tag, self._content_tag, *MARKS, MASKED}
        of_answers = {*self._read_of_any, *(THOUGHTS if self._thoughts else ())}
        self._read_of = {"function": of_answers, "assistant": {*of_answers, *CALLS}}
        if self._sources:
            self._read_of["observation"] = {*self._read_of_any, *SOURCE}

    def read(self, message: Any) -> Message:
        """Read one message of a row.

        Args:
            message: the JSON value of the message.

        Raises:
            InvalidRowError: the message has no usable role, text or calls, two different texts of reasoning, or a
                training mark that is neither 0 nor 1.
            UnknownRoleError: the role has an unknown name.
        """
        if not isinstance(message, dict):
            raise InvalidRowError("message is not an object")
        name = message.get(self.role_tag)
        if not isinstance(name, str):
            raise InvalidRowError("message has no role")
        role = self._roles.get(name)
        if role is None:
            raise UnknownRoleError(name, message)
        content, trained, thought = message.get(self._content_tag), True, ""
        if isinstance(content, list):
            content, thought = self._join_parts(content, role)
        # Most messages have only a role and a content: skip the search for further fields and marks.
        if len(message) > 2:
            known = self._read_of.get(role, self._read_of_any)
            self._unread.update(name for name in message.keys() - known if _holds_text(message[name]))
            trained = is_trained_message(message)
        if role == "system":  # an empty system text means the template's default
            return Message(role, message_text(content, "system", required=False), trained=trained)
        if role == "function":
            return Message(
                role,
                "",
                parse_calls(message_text(content, "message"), self._sources),
                (),
                self._thought(message, ""),
                trained,
            )
        if role == "assistant":
            calls = _calls(message, self._sources)
            text = message_text(content, "message", required=not calls)
            return Message(role, text, calls, (), self._thought(message, thought), trained)
        sources = (_source(message),) if self._sources and role == "observation" else ()
        if role == "observation" and content == "":  # a function may return nothing
            return Message(role, "", trained=trained, sources=sources)
        return Message(role, message_text(content, "message"), trained=trained, sources=sources)

    def _join_parts(self, parts: list[Any], role: str) -> tuple[str, str]:
        """Join a content in parts into (text, reasoning); only answers may have reasoning."""
        texts: list[str] = []
        thoughts: list[str] = []
        for part in parts:
            if not isinstance(part, dict):
                raise InvalidRowError("message is not text")
            if part.get("type") in THOUGHT_PARTS and role == "assistant":
                names = (*THOUGHTS, "text")
                thoughts.append(next((part[name] for name in names if isinstance(part.get(name), str)), ""))
            elif part.get("type") not in THOUGHT_PARTS and isinstance(part.get("text"), str):
                texts.append(part["text"])
            else:
                raise InvalidRowError("message is not text")
        thought = "".join(thoughts)
        if thought and not self._thoughts:
            self._unread.add(f"{self._content_tag} of type {THOUGHT_PARTS[0]}")
        return "".join(texts), thought

    def _thought(self, message: Mapping[str, Any], in_parts: str) -> str:
        """Return the reasoning of an answer, from its fields or from `in_parts`, the reasoning in its content.

        A reasoning field that is not a string counts as unread.

        Raises:
            InvalidRowError: two different texts of reasoning.
        """
        if not self._thoughts:
            return ""
        # Several fields may hold the same text; only different texts are an error.
        thoughts = {message_text(in_parts, "thought", required=False)}
        for name in THOUGHTS:
            value = message.get(name)
            if isinstance(value, str):
                thoughts.add(message_text(value, name, required=False))
            elif _holds_text(value):
                self._unread.add(name)
        thoughts.discard("")
        if len(thoughts) > 1:
            raise InvalidRowError("an answer has two different thoughts")
        return thoughts.pop() if thoughts else ""


def named_roles(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return name → role of all names that are read.

    Args:
        tags: `tags` of --map-keys: the names that replace those of ROLE_NAMES, and other keys.
    """
    roles = {name: key.removesuffix("_tag") for key, names in ROLE_NAMES.items() for name in names if key not in tags}
    # Names that are given come last, because they may be known names of other roles.
    given = {tags[key]: key.removesuffix("_tag") for key in ROLE_NAMES if key in tags}
    return {OLD_REPLY: "observation"} | roles | given


def message_text(value: Any, what: str, required: bool = True) -> str:
    """Return `value` if it is text that can be tokenised.

    Args:
        value: value of a field; None if the field is missing.
        what: name of the field in the reason of the error.
        required: whether the text must be present and contain more than whitespace.

    Returns:
        `value`; "" for a missing text that is not required.

    Raises:
        InvalidRowError: the value is not Unicode text, or it is required and missing or empty.
    """
    if value is None:
        if required:
            raise InvalidRowError(f"{what} is missing")
        return ""
    if not isinstance(value, str):
        raise InvalidRowError(f"{what} is not text")
    if required and (not value or value.isspace()):
        raise InvalidRowError(f"{what} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, as JSON's escapes allow
            raise InvalidRowError(f"{what} is not Unicode text") from None
    return value


def is_trained_message(message: Mapping[str, Any]) -> bool:
    """Return whether a message is trained, according to its training marks; True without marks.

    Raises:
        InvalidRowError: a mark is not 0, 1, false or true.
    """
    trained = True
    for name in (*MARKS, MASKED):
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            # Shortened, because rows are counted under the reason and reasons are printed.
            shown = f"{value:.3g}" if isinstance(value, float) else json.dumps(value, default=str)[:20]
            raise InvalidRowError(f"{name} of a message is {shown}: only 0 and 1, or false and true, are read")
        trained = trained and bool(value) != (name == MASKED)
    return trained


def _source(message: Mapping[str, Any]) -> ReplySource:
    """Return what a tool's reply answers."""
    values = [message.get(name) for name in SOURCE]
    return ReplySource(
        *(message_text(value, "name", required=False) if isinstance(value, str) else "" for value in values)
    )


def _calls(message: Mapping[str, Any], with_ids: bool) -> tuple[FunctionCall, ...]:
    """Return the calls of an answer. Both fields may be present if they contain the same calls.

    Raises:
        InvalidRowError: a field does not contain calls, or the two fields differ.
    """
    given = [parse_calls(value, with_ids) for name in CALLS if not _has_no_calls(value := message.get(name))]
    # Calls in the older field function_call have no ids.
    if any([call[:2] for call in calls] != [call[:2] for call in given[0]] for calls in given):
        raise InvalidRowError("tool_calls and function_call of an answer differ")
    return given[0] if given else ()


def _has_no_calls(value: Any) -> bool:
    """Return whether a field is empty, or holds only nulls, as a columnar file stores a missing struct."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return not value or (isinstance(value, dict) and not _holds_text(value))


def _holds_text(value: Any) -> bool:
    """Return whether a JSON value contains text, at any depth."""
    # A stack instead of recursion: a deeply nested value must not raise RecursionError here.
    pending = [value]
    while pending:
        entry = pending.pop()
        if isinstance(entry, str) and entry.strip():
            return True
        if isinstance(entry, dict):
            pending += entry.values()
        elif isinstance(entry, list):
            pending += entry
    return False
