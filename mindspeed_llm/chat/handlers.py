"""Handlers: convert rows of one instruction format into conversations.

A handler reads the columns of its format; `--map-keys` renames them.

    Alpaca     {"instruction": "2 + 3?", "output": "5"}
    ShareGPT   {"conversations": [{"from": "human", "value": "2 + 3?"}, {"from": "gpt", "value": "5"}]}
    OpenAI     {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}
    all three  Conversation(turns=[Turn(prompt="2 + 3?", answer="5")])
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from mindspeed_llm.chat.conversation import Conversation, InvalidRowError, Turn
from mindspeed_llm.chat.messages import ROLE_NAMES, Message, MessageReader, UnknownRoleError, message_text, named_roles
from mindspeed_llm.chat.tool_formats import parse_tools


class Handler(ABC):
    """Base class of the converters from rows to conversations.

    Args:
        columns: key of `--map-keys` → column, for the keys that differ from DEFAULTS. The key "tags" holds the names
            that differ from TAGS. "" or None means that the column is not read.

    Attributes:
        name: value of `--handler-name`.
        plain: whether rows are text without roles, of which every token is trained without a template.
        DEFAULTS: key of `--map-keys` → default column.
        NEEDED: the keys whose columns a row must have.
        TAGS: key of `tags` in `--map-keys` → default name of a field or role of messages; empty without messages.
        columns: key → column that is read; None for no column.
        tags: key → name of a field or role of messages.
        unseen: columns in `columns` that no row has contained so far.
        unread: message fields that contained text and were not read; see `pop_unread_fields`.
    """

    name: ClassVar[str]
    plain: ClassVar[bool] = False
    DEFAULTS: ClassVar[dict[str, str]]
    NEEDED: ClassVar[tuple[str, ...]]
    TAGS: ClassVar[dict[str, str]] = {}

    def __init__(self, columns: Mapping[str, Any] | None = None) -> None:
        given = dict(columns or {})
        self.tags = self.TAGS | (given.pop("tags", None) or {})
        # No row has a column None, so that row.get finds nothing.
        self.columns: dict[str, Any] = {**self.DEFAULTS, **{key: name or None for key, name in given.items()}}
        self.unseen = {name for name in given.values() if name}
        self.unread: set[str] = set()

    def pop_unread_fields(self) -> set[str]:
        """Return the fields in `unread`, and clear it."""
        unread = set(self.unread)
        # Clear in place: a handler of messages shares this set with its reader.
        self.unread.clear()
        return unread

    def ignore_reasoning(self) -> None:  # noqa: B027 - only messages have such fields
        """Do not read reasoning fields of messages, for templates that cannot write reasoning."""

    def read_sources(self) -> None:  # noqa: B027 - only messages have such fields
        """Read ids of calls and what replies of tools answer, for templates that may write them."""

    def conversation(self, value: Any) -> Conversation:
        """Convert a row into a conversation.

        Args:
            value: the JSON value of the row.

        Raises:
            InvalidRowError: the row is not a conversation of this format; the message is the reason.
        """
        if not isinstance(value, dict):
            raise InvalidRowError("row is not an object")
        # Empty as soon as every column has been seen, so that the other rows skip the comparison.
        if self.unseen:
            self.unseen -= value.keys()
        return self._conversation(value)

    @classmethod
    def needed_columns(cls) -> str:
        """Return the default names of the columns that a row must have, for a message."""
        return " and ".join(cls.DEFAULTS[key] for key in cls.NEEDED)

    def fits(self, columns: Collection[str]) -> bool:
        """Return whether rows with these columns are made for this handler."""
        return all(self.columns[key] in columns for key in self.NEEDED)

    @abstractmethod
    def _conversation(self, row: dict[str, Any]) -> Conversation: ...


def _listed(value: Any, reason: str) -> list[Any]:
    """Return `value` if it is a list, or parse it from JSON text: a cell of a CSV file can only hold text.

    Raises:
        InvalidRowError: with `reason`, if the value is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRowError(reason) from None
    if not isinstance(value, list):
        raise InvalidRowError(reason)
    return value


def _with_tools(conversation: Conversation, tools: Any) -> Conversation:
    """Return a copy of `conversation` with the tools of its row.

    Raises:
        InvalidRowError: the tools are not a list of functions.
    """
    if tools is None:
        return conversation
    functions = parse_tools(tools)
    no_tools = not functions and isinstance(tools, str) and bool(tools.strip())
    return replace(conversation, tools=functions, no_tools=no_tools)


class AlpacaHandler(Handler):
    """Handler for Alpaca rows: columns instruction, input and output; optional system, history and tools.

    `history` is a list of earlier turns [prompt, answer], or its JSON text; `tools` is the same as in SharegptHandler.
    A non-empty `input` is appended to `instruction` on a new line.
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
    NEEDED: ClassVar[tuple[str, ...]] = ("prompt", "response")

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        columns = self.columns
        prompt = message_text(row.get(columns["prompt"]), "instruction")
        query = message_text(row.get(columns["query"]), "input", required=False)
        answer = message_text(row.get(columns["response"]), "answer")
        turns = []
        history = row.get(columns["history"])
        for pair in _listed(history, "history is not a list of pairs") if history else ():
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
    """Handler for ShareGPT's rows, conversations of [{from, value}], and OpenAI's, messages of [{role, content}].

    The column and the fields are recognised in each row, in any combination; a row with both columns is read from
    conversations. `--map-keys` determines the column, the fields or the names of roles instead. The messages are a
    list, or its JSON text. Messages of human or observation alternate with messages of gpt or function_call; ROLE_NAMES
    lists the other names. The system text is a message at the start, or the column `system`. `tools` is a list, or JSON
    text. A function_call is JSON with name and arguments, or a list of these. `tool_calls`, reasoning and training
    marks of a message (see messages.py) and content in parts ([{"type": "text", "text": ...}]) are read without any
    setting.

    Attributes:
        OPENAI_COLUMN: column that is read if a row does not have that of DEFAULTS.
    """

    name = "SharegptStyleInstructionHandler"
    DEFAULTS: ClassVar[dict[str, str]] = {"messages": "conversations", "system": "system", "tools": "tools"}
    NEEDED: ClassVar[tuple[str, ...]] = ("messages",)
    OPENAI_COLUMN: ClassVar[str] = "messages"
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
        given = columns or {}
        self._other_column: Any = None if "messages" in given else self.OPENAI_COLUMN
        self._given_tags = tags = given.get("tags") or {}
        roles = named_roles(tags)
        self._reader = MessageReader(self.tags["role_tag"], self.tags["content_tag"], roles, self.unread)
        named = "role_tag" in tags or "content_tag" in tags
        self._openai_reader = self._reader if named else MessageReader("role", "content", roles, self.unread)

    @classmethod
    def needed_columns(cls) -> str:
        """Return the columns of messages, one of which a row must have."""
        return f"{super().needed_columns()} or {cls.OPENAI_COLUMN}"

    def fits(self, columns: Collection[str]) -> bool:
        """Return whether rows with these columns have messages."""
        return super().fits(columns) or self._other_column in columns

    def role_names(self, tag: str) -> tuple[str, ...]:
        """Return the names of a role; `tag` is one of the keys of ROLE_NAMES."""
        return (self._given_tags[tag],) if tag in self._given_tags else ROLE_NAMES[tag]

    def ignore_reasoning(self) -> None:
        """Do not read reasoning fields of messages; count them as unread."""
        for reader in (self._reader, self._openai_reader):
            reader.read_reasoning(False)

    def read_sources(self) -> None:
        """Read ids of calls and what replies of tools answer."""
        for reader in (self._reader, self._openai_reader):
            reader.read_sources()

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        column = self.columns["messages"]
        messages = row.get(column)
        if messages is None:
            column = self._other_column
            messages = row.get(column)
            if messages is None:
                raise InvalidRowError("conversation is missing")
        messages = _listed(messages, "conversation is not a list")
        first = messages[0] if messages else None
        reader = self._reader
        # A columnar file gives each message the fields of both kinds, with nulls.
        if isinstance(first, dict) and first.get(reader.role_tag) is None:
            reader = self._openai_reader
        try:
            parsed = self._join_replies([reader.read(message) for message in messages])
        except UnknownRoleError as error:
            number = next(number for number, message in enumerate(messages) if message is error.message)
            raise InvalidRowError(f"{error} in {column}[{number}].{reader.role_tag}") from None
        system = message_text(row.get(self.columns["system"]), "system", required=False)
        empty = False
        if parsed and parsed[0].role == "system":
            # As in MindSpeed-LLM, the message replaces the column even if it is empty.
            system = parsed.pop(0).text
            empty = not system
        conversation = self._pair_messages(parsed, system)
        conversation.empty_system = empty
        return _with_tools(conversation, row.get(self.columns["tools"]))

    def _join_replies(self, messages: list[Message]) -> list[Message]:
        """Join consecutive replies of tools into one message, at most as many as functions were called."""
        joined, expected = messages[:1], 0
        for message in messages[1:]:
            before = joined[-1]
            # Further replies stay separate messages, which fail the check of the order of roles.
            if message.role == before.role == "observation" and len(before.replies) + 1 < expected:
                replies, trained = (*before.replies, message.text), before.trained and message.trained
                sources = before.sources + message.sources
                joined[-1] = before._replace(replies=replies, trained=trained, sources=sources)
                continue
            expected = len(before.calls)
            joined.append(message)
        return joined

    def _pair_messages(self, messages: list[Message], system: str) -> Conversation:
        """Pair each prompt with the answer after it, and check the order of roles."""
        for number, message in enumerate(messages):
            if message.role not in (("assistant", "function") if number % 2 else ("user", "observation")):
                raise InvalidRowError("roles out of order")
        turns = [
            Turn(
                prompt.text,
                answer.text,
                "user" if prompt.role == "user" else "observation",
                answer.calls,
                prompt.replies,
                answer.thought,
                answer.trained,
                prompt.trained,
                prompt.sources,
            )
            # Not strict: a last prompt without an answer is left out.
            for prompt, answer in zip(messages[::2], messages[1::2], strict=False)
        ]
        if not turns:
            raise InvalidRowError("answer is missing" if messages else "conversation is empty")
        return Conversation(turns, system, cut_prompt=len(messages) % 2 == 1)


class TextHandler(Handler):
    """Handler for documents of plain text in the column text."""

    name = "GeneralPretrainHandler"
    plain = True
    DEFAULTS: ClassVar[dict[str, str]] = {"text": "text"}
    NEEDED: ClassVar[tuple[str, ...]] = ("text",)

    def fits(self, columns: Collection[str]) -> bool:
        """Return whether rows consist of text only; text beside other columns may have another purpose."""
        return set(columns) == {self.columns["text"]}

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        return Conversation([Turn("", message_text(row.get(self.columns["text"]), "text"))])


class AlpacaTextHandler(AlpacaHandler):
    """Handler for Alpaca rows as plain documents: instruction, input and output in the wording of pretraining.json.

    Attributes:
        WORDING: texts of pretraining.json that are written around the columns.
    """

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
    """Create the handler `name` with the columns of `--map-keys`.

    Args:
        name: value of `--handler-name`.
        map_keys: value of `--map-keys`, JSON text; None if the flag is not given.

    Returns:
        (handler, []), or (None, problems) with one line per problem.
    """
    if name not in HANDLERS:
        return None, [f"--handler-name {name}: no such handler; the handlers are {', '.join(HANDLERS)}"]
    columns, problems = parse_map_keys(map_keys, HANDLERS[name])
    return (None, problems) if problems else (HANDLERS[name](columns), [])


def fitting_handlers(columns: Collection[str], map_keys: str | None) -> list[str]:
    """Return the names of the handlers that rows with these columns are made for.

    Args:
        columns: names of the columns of a row.
        map_keys: value of `--map-keys`; a handler whose keys it does not fit is left out.
    """
    fitting = []
    # AlpacaTextHandler is for the columns of AlpacaHandler, so it must be requested by name.
    for name in (AlpacaHandler.name, SharegptHandler.name, TextHandler.name):
        handler, _ = create_handler(name, map_keys)
        if handler is not None and handler.fits(columns):
            fitting.append(name)
    return fitting


def parse_map_keys(text: str | None, handler: type[Handler]) -> tuple[dict[str, Any], list[str]]:
    """Parse `--map-keys` for a handler.

    Args:
        text: JSON text of key → column; None if the flag is not given. Keys that it leaves out keep their defaults;
            "" means no column.
        handler: class whose DEFAULTS and TAGS define the allowed keys.

    Returns:
        (columns, problems): the parsed object, and one line per problem.
    """
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
    """Return one line for each unknown key and each value that is not a name; `where` is the prefix for nested keys."""
    listing = ", ".join([*known, *(["tags"] if with_tags else [])])
    problems = []
    for key, column in keys.items():
        if with_tags and key == "tags":
            continue
        if key not in known:
            problems.append(f"--map-keys: {where}unknown key '{key}'; the keys of this handler are {listing}")
        # "" and null turn off a column. A tag cannot be turned off: without it messages could not be read.
        elif not (isinstance(column, str) and column) and (where or column not in ("", None)):
            problems.append(f"--map-keys: {where}'{key}' must be a name, as JSON text; it is {json.dumps(column)}")
    return problems


def _example(handler: type[Handler]) -> str:
    return json.dumps(dict(list(handler.DEFAULTS.items())[:3]), separators=(",", ":"))
