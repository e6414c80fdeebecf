"""Instruction formats: which columns a row has and what they mean."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from mindspeed_llm.chat.conversation import BadRow, Call, Conversation, Turn
from mindspeed_llm.chat.tools import read_calls, read_tools


class Handler(ABC):
    """Turns rows into conversations.

    Args:
        columns: key of `--map-keys` → column, for the keys that are to differ from DEFAULTS; "" or None: no column.

    Attributes:
        unseen: columns that `columns` names and that no row has had so far.
        plain: its rows are text without roles: no template, and every token is trained.
    """

    name: ClassVar[str]
    plain: ClassVar[bool] = False
    DEFAULTS: ClassVar[dict[str, str]]
    TAGS: ClassVar[dict[str, str]] = {}

    def __init__(self, columns: Mapping[str, Any] | None = None) -> None:
        given = dict(columns or {})
        self.tags = self.TAGS | given.pop("tags", {})
        # None for no column, which no row has.
        self.columns: dict[str, Any] = {**self.DEFAULTS, **{key: name or None for key, name in given.items()}}
        self.unseen = {name for name in given.values() if name}

    def conversation(self, value: Any) -> Conversation:
        """The conversation that a row holds.

        Raises:
            BadRow: it holds none; the reason is the message.
        """
        if not isinstance(value, dict):
            raise BadRow("row is not an object")
        if self.unseen:
            self.unseen -= value.keys()
        return self._conversation(value)

    @abstractmethod
    def _conversation(self, row: dict[str, Any]) -> Conversation: ...


def _text(value: Any, what: str, required: bool = True) -> str:
    """`value` if it is text that can be tokenised; empty for a missing one that is not required."""
    if value is None:
        if required:
            raise BadRow(f"{what} is missing")
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{what} is not text")
    if required and not value.strip():
        raise BadRow(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON's escapes allow
        raise BadRow(f"{what} is not Unicode text") from None
    return value


def _listed(value: Any, reason: str) -> list[Any]:
    """`value` if it is a list, or the JSON of one: a cell of a CSV file holds text alone."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(reason) from None
    if not isinstance(value, list):
        raise BadRow(reason)
    return value


class AlpacaHandler(Handler):
    """instruction, input, output; optional system, and history, a list or JSON of earlier turns [prompt, answer]."""

    name = "AlpacaStyleInstructionHandler"
    DEFAULTS: ClassVar[dict[str, str]] = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    }

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        columns = self.columns
        prompt = _text(row.get(columns["prompt"]), "instruction")
        query = _text(row.get(columns["query"]), "input", required=False)
        answer = _text(row.get(columns["response"]), "answer")
        turns = []
        history = _listed(row.get(columns["history"]) or [], "history is not a list of pairs")
        for pair in history:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise BadRow("history is not a list of pairs")
            turns.append(Turn(_text(pair[0], "instruction in the history"), _text(pair[1], "answer in the history")))
        turns.append(Turn(f"{prompt}\n{query}" if query else prompt, answer))
        return Conversation(turns, _text(row.get(columns["system"]), "system", required=False))


class _Message(NamedTuple):
    """One message, or several replies of tools in a row."""

    role: str
    text: str
    calls: tuple[Call, ...] = ()
    replies: tuple[str, ...] = ()


class SharegptHandler(Handler):
    """conversations: [{from, value}, ...], or its JSON: human or observation, then gpt or function_call, in turn.

    A system message may come first; else the column `system`. `tools` is JSON, or a list. A function_call is JSON with
    name and arguments, or a list of these. OpenAI's messages are read with other column and tags; an answer's
    `tool_calls` and a text in parts ([{"type": "text", "text": ...}]) are understood as they stand.
    """

    name = "SharegptStyleInstructionHandler"
    DEFAULTS: ClassVar[dict[str, str]] = {"messages": "conversations", "system": "system", "tools": "tools"}
    TAGS: ClassVar[dict[str, str]] = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    }

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        messages = row.get(self.columns["messages"])
        if messages is None:
            raise BadRow("conversation is missing")
        messages = _listed(messages, "conversation is not a list")
        spoken = self._replies_joined([self._message(message) for message in messages])
        system = _text(row.get(self.columns["system"]), "system", required=False)
        if spoken and spoken[0].role == self.tags["system_tag"]:
            system = spoken.pop(0).text  # in place of the column, also if it is empty, as in MindSpeed-LLM
        conversation = self._turns(spoken, system)
        tools = row.get(self.columns["tools"])
        conversation.tools = read_tools(tools)
        conversation.no_tools = not conversation.tools and isinstance(tools, str) and bool(tools.strip())
        return conversation

    def _message(self, message: Any) -> _Message:
        if not isinstance(message, dict):
            raise BadRow("message is not an object")
        role = message.get(self.tags["role_tag"])
        if not isinstance(role, str):
            raise BadRow("message has no role")
        content = message.get(self.tags["content_tag"])
        if isinstance(content, list):
            content = _joined(content)
        if role == self.tags["system_tag"]:  # an empty one means the template's default
            return _Message(role, _text(content, "system", required=False))
        if role == self.tags["function_tag"]:
            return _Message(role, "", read_calls(_text(content, "message")))
        if role == self.tags["assistant_tag"] and message.get("tool_calls"):
            calls = read_calls(message["tool_calls"])
            return _Message(role, _text(content, "message", required=False), calls)
        if role == self.tags["observation_tag"] and content == "":  # a function may have nothing to say
            return _Message(role, "")
        return _Message(role, _text(content, "message"))

    def _replies_joined(self, spoken: list[_Message]) -> list[_Message]:
        """As many replies in a row as functions were called are one message."""
        tag, joined, wanted = self.tags["observation_tag"], spoken[:1], 0
        for message in spoken[1:]:
            before = joined[-1]
            if message.role == tag and before.role == tag and len(before.replies) + 1 < wanted:
                joined[-1] = before._replace(replies=(*before.replies, message.text))
                continue
            wanted = len(before.calls)
            joined.append(message)
        return joined

    def _turns(self, spoken: list[_Message], system: str) -> Conversation:
        tags = self.tags
        prompts, answers = (tags["user_tag"], tags["observation_tag"]), (tags["assistant_tag"], tags["function_tag"])
        for number, role in enumerate(message.role for message in spoken):
            if role not in (*prompts, *answers, tags["system_tag"]):
                raise BadRow("unknown role")
            if role not in (answers if number % 2 else prompts):
                raise BadRow("roles out of order")
        turns = [
            Turn(
                asked.text,
                answer.text,
                "user" if asked.role == tags["user_tag"] else "observation",
                answer.calls,
                asked.replies,
            )
            for asked, answer in zip(spoken[::2], spoken[1::2], strict=False)
        ]
        if not turns:
            raise BadRow("answer is missing" if spoken else "conversation is empty")
        return Conversation(turns, system, cut_prompt=len(spoken) % 2 == 1)


def _joined(parts: list[Any]) -> str:
    """The text of a message in parts."""
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BadRow("message is not text")
    return "".join(part["text"] for part in parts)


class TextHandler(Handler):
    """text: one document of plain text."""

    name = "GeneralPretrainHandler"
    plain = True
    DEFAULTS: ClassVar[dict[str, str]] = {"text": "text"}

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        return Conversation([Turn("", _text(row.get(self.columns["text"]), "text"))])


class AlpacaTextHandler(AlpacaHandler):
    """instruction, input, output, written as one document in the wording of pretraining.json; no roles."""

    name = "AlpacaPretrainHandler"
    plain = True
    DEFAULTS: ClassVar[dict[str, str]] = {"prompt": "instruction", "query": "input", "response": "output"}
    WORDING: ClassVar[dict[str, str]] = json.loads(
        Path(__file__).with_name("pretraining.json").read_text(encoding="utf-8")
    )

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        columns, wording = self.columns, self.WORDING
        prompt = _text(row.get(columns["prompt"]), "instruction")
        query = _text(row.get(columns["query"]), "input", required=False)
        answer = _text(row.get(columns["response"]), "answer")
        text = wording["before"] + prompt + wording["between"]
        text += wording["input"] + query if query else wording["no_input"]
        return Conversation([Turn("", text + wording["answer"] + answer)])


HANDLERS: dict[str, type[Handler]] = {
    handler.name: handler for handler in (AlpacaHandler, SharegptHandler, TextHandler, AlpacaTextHandler)
}


def handler_named(name: str, map_keys: str | None) -> tuple[Handler | None, list[str]]:
    """The handler called `name` with the columns of `--map-keys`, or None and what is wrong, a line for each fault."""
    if name not in HANDLERS:
        return None, [f"--handler-name {name}: no such handler; there are {', '.join(HANDLERS)}"]
    columns, problems = parse_map_keys(map_keys, HANDLERS[name])
    return (None, problems) if problems else (HANDLERS[name](columns), [])


def parse_map_keys(text: str | None, handler: type[Handler]) -> tuple[dict[str, Any], list[str]]:
    """What `--map-keys` says, and what is wrong with it. Keys left out keep their defaults; "" stands for no column."""
    if text is None:
        return {}, []
    try:
        keys = json.loads(text)
    except ValueError as error:
        return {}, [f"--map-keys: not JSON ({error}); write it as '{_example(handler)}'"]
    if not isinstance(keys, dict):
        return {}, [f"--map-keys: not a JSON object; write it as '{_example(handler)}'"]
    problems = _key_problems(keys, handler.DEFAULTS, bool(handler.TAGS), "")
    tags = keys.get("tags")
    if handler.TAGS and tags is not None:
        if isinstance(tags, dict):
            problems += _key_problems(tags, handler.TAGS, False, "tags: ")
        else:
            problems.append("--map-keys: 'tags' is not a JSON object")
    return keys, problems


def _key_problems(keys: dict[str, Any], known: dict[str, str], with_tags: bool, where: str) -> list[str]:
    listing = ", ".join([*known, *(["tags"] if with_tags else [])])
    problems = []
    for key, column in keys.items():
        if with_tags and key == "tags":
            continue
        if key not in known:
            problems.append(f"--map-keys: {where}unknown key '{key}'; this handler knows {listing}")
        elif not (isinstance(column, str) and column) and (where or column not in ("", None)):
            problems.append(f"--map-keys: {where}'{key}' is to name something, as text; it is {json.dumps(column)}")
    return problems


def _example(handler: type[Handler]) -> str:
    return json.dumps(dict(list(handler.DEFAULTS.items())[:3]), separators=(",", ":"))
