"""Instruction formats: which columns a row has and what they mean."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from mindspeed_llm.chat.conversation import Conversation, InvalidRowError, Turn
from mindspeed_llm.chat.messages import Message, MessageReader, message_text
from mindspeed_llm.chat.tool_formats import parse_tools


class Handler(ABC):
    """Turns rows into conversations.

    Args:
        columns: key of `--map-keys` → column, for the keys that are to differ from DEFAULTS; "" or None: no column.

    Attributes:
        unseen: columns that `columns` names and that no row has had so far.
        plain: its rows are text without roles: no template, and every token is trained.
        unread: fields with text that messages have had and that are not read; see `pop_unread_fields`.
    """

    name: ClassVar[str]
    plain: ClassVar[bool] = False
    DEFAULTS: ClassVar[dict[str, str]]
    TAGS: ClassVar[dict[str, str]] = {}

    def __init__(self, columns: Mapping[str, Any] | None = None) -> None:
        given = dict(columns or {})
        self.tags = self.TAGS | (given.pop("tags", None) or {})
        # None for no column, which no row has.
        self.columns: dict[str, Any] = {**self.DEFAULTS, **{key: name or None for key, name in given.items()}}
        self.unseen = {name for name in given.values() if name}
        self.unread: set[str] = set()

    def pop_unread_fields(self) -> set[str]:
        """Return the fields in `unread` and begin to collect anew."""
        taken = set(self.unread)
        self.unread.clear()
        return taken

    def ignore_reasoning(self) -> None:  # noqa: B027 - only messages have such fields
        """Do not read thoughts that stand in fields of their own: the template has no place for them."""

    def conversation(self, value: Any) -> Conversation:
        """The conversation that a row holds.

        Raises:
            BadRow: it holds none; the reason is the message.
        """
        if not isinstance(value, dict):
            raise InvalidRowError("row is not an object")
        if self.unseen:
            self.unseen -= value.keys()
        return self._conversation(value)

    @abstractmethod
    def _conversation(self, row: dict[str, Any]) -> Conversation: ...


def _listed(value: Any, reason: str) -> list[Any]:
    """`value` if it is a list, or the JSON of one: a cell of a CSV file holds text alone."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRowError(reason) from None
    if not isinstance(value, list):
        raise InvalidRowError(reason)
    return value


def _with_tools(conversation: Conversation, tools: Any) -> Conversation:
    """`conversation` with the functions of its row.

    Raises:
        BadRow: they are no list of functions.
    """
    functions = parse_tools(tools)
    no_tools = not functions and isinstance(tools, str) and bool(tools.strip())
    return replace(conversation, tools=functions, no_tools=no_tools)


class AlpacaHandler(Handler):
    """instruction, input, output; optional system, history and tools.

    History is a list or JSON of earlier turns [prompt, answer], tools are those of SharegptHandler.
    """

    name = "AlpacaStyleInstructionHandler"
    DEFAULTS: ClassVar[dict[str, str]] = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
        "tools": "tools",
    }

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        columns = self.columns
        prompt = message_text(row.get(columns["prompt"]), "instruction")
        query = message_text(row.get(columns["query"]), "input", required=False)
        answer = message_text(row.get(columns["response"]), "answer")
        turns = []
        history = _listed(row.get(columns["history"]) or [], "history is not a list of pairs")
        for pair in history:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise InvalidRowError("history is not a list of pairs")
            turns.append(
                Turn(
                    message_text(pair[0], "instruction in the history"), message_text(pair[1], "answer in the history")
                )
            )
        turns.append(Turn(f"{prompt}\n{query}" if query else prompt, answer))
        conversation = Conversation(turns, message_text(row.get(columns["system"]), "system", required=False))
        return _with_tools(conversation, row.get(columns["tools"]))


class SharegptHandler(Handler):
    """conversations: [{from, value}, ...], or its JSON: human or observation, then gpt or function_call, in turn.

    A system message may come first; else the column `system`. `tools` is JSON, or a list. A function_call is JSON with
    name and arguments, or a list of these. OpenAI's messages are read with other column and tags; an answer's
    `tool_calls`, thoughts and marks (see messages.py) and a text in parts ([{"type": "text", "text": ...}]) are
    understood as they stand.
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

    def __init__(self, columns: Mapping[str, Any] | None = None) -> None:
        super().__init__(columns)
        self._reader = MessageReader(self.tags)
        self.unread = self._reader.unread

    def ignore_reasoning(self) -> None:
        self._reader.read_reasoning(False)

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        messages = row.get(self.columns["messages"])
        if messages is None:
            raise InvalidRowError("conversation is missing")
        messages = _listed(messages, "conversation is not a list")
        spoken = self._replies_joined([self._reader.read(message) for message in messages])
        system = message_text(row.get(self.columns["system"]), "system", required=False)
        if spoken and spoken[0].role == self.tags["system_tag"]:
            system = spoken.pop(0).text  # in place of the column, also if it is empty, as in MindSpeed-LLM
        return _with_tools(self._turns(spoken, system), row.get(self.columns["tools"]))

    def _replies_joined(self, spoken: list[Message]) -> list[Message]:
        """As many replies in a row as functions were called are one message."""
        tag, joined, wanted = self.tags["observation_tag"], spoken[:1], 0
        for message in spoken[1:]:
            before = joined[-1]
            if message.role == tag and before.role == tag and len(before.replies) + 1 < wanted:
                replies, trained = (*before.replies, message.text), before.trained and message.trained
                joined[-1] = before._replace(replies=replies, trained=trained)
                continue
            wanted = len(before.calls)
            joined.append(message)
        return joined

    def _turns(self, spoken: list[Message], system: str) -> Conversation:
        tags = self.tags
        prompts, answers = (tags["user_tag"], tags["observation_tag"]), (tags["assistant_tag"], tags["function_tag"])
        for number, role in enumerate(message.role for message in spoken):
            if role not in (*prompts, *answers, tags["system_tag"]):
                raise InvalidRowError("unknown role")
            if role not in (answers if number % 2 else prompts):
                raise InvalidRowError("roles out of order")
        turns = [
            Turn(
                asked.text,
                answer.text,
                "user" if asked.role == tags["user_tag"] else "observation",
                answer.calls,
                asked.replies,
                answer.thought,
                answer.trained,
                asked.trained,
            )
            for asked, answer in zip(spoken[::2], spoken[1::2], strict=False)
        ]
        if not turns:
            raise InvalidRowError("answer is missing" if spoken else "conversation is empty")
        return Conversation(turns, system, cut_prompt=len(spoken) % 2 == 1)


class TextHandler(Handler):
    """text: one document of plain text."""

    name = "GeneralPretrainHandler"
    plain = True
    DEFAULTS: ClassVar[dict[str, str]] = {"text": "text"}

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        return Conversation([Turn("", message_text(row.get(self.columns["text"]), "text"))])


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
        prompt = message_text(row.get(columns["prompt"]), "instruction")
        query = message_text(row.get(columns["query"]), "input", required=False)
        answer = message_text(row.get(columns["response"]), "answer")
        text = wording["before"] + prompt + wording["between"]
        text += wording["input"] + query if query else wording["no_input"]
        return Conversation([Turn("", text + wording["answer"] + answer)])


HANDLERS: dict[str, type[Handler]] = {
    handler.name: handler for handler in (AlpacaHandler, SharegptHandler, TextHandler, AlpacaTextHandler)
}


def create_handler(name: str, map_keys: str | None) -> tuple[Handler | None, list[str]]:
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
    except (ValueError, RecursionError) as error:
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
