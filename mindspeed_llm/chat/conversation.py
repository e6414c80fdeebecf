"""The conversation: the common form of rows of every format, which chat templates render.

row (Alpaca)   {"instruction": "2 + 3?", "output": "5", "system": "Be brief."}
conversation   Conversation(turns=[Turn(prompt="2 + 3?", answer="5")], system="Be brief.")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple


class FunctionCall(NamedTuple):
    """A call of a function by the model.

    Attributes:
        name: name of the function.
        arguments: its arguments as JSON text.
        id: id of the call, which replies refer to; "" if the row has none.
    """

    name: str
    arguments: str
    id: str = ""


class ReplySource(NamedTuple):
    """What a reply of a tool answers.

    Attributes:
        name: name of the tool; "" if the row has none.
        call_id: id of the call; "" if the row has none.
    """

    name: str = ""
    call_id: str = ""


@dataclass(slots=True)
class Turn:
    """One prompt and the answer to it.

    Attributes:
        prompt: text of the user, or reply of a tool.
        answer: text that the model is trained to generate; may be empty if there are calls.
        role: author of `prompt`: the user, or a tool ("observation").
        calls: functions that the answer calls, after its text.
        replies: further replies of tools after `prompt`, if the previous answer called several functions.
        thought: reasoning before `answer`, if the row keeps it in a field beside the text of the answer.
        trained: False if the row marks the answer as not to be trained.
        prompt_trained: False if the row marks the prompt as not to be trained; matters only where prompts are trained.
        sources: for a tool's prompt, what it and each of `replies` answers; empty if the row does not say.
    """

    prompt: str
    answer: str
    role: Literal["user", "observation"] = "user"
    calls: tuple[FunctionCall, ...] = ()
    replies: tuple[str, ...] = ()
    thought: str = ""
    trained: bool = True
    prompt_trained: bool = True
    sources: tuple[ReplySource, ...] = ()


@dataclass(slots=True)
class Conversation:
    """The content of one row. Plain text is one turn with an empty prompt.

    Attributes:
        turns: oldest first, at least one.
        system: system text of the row; empty means the template's default.
        cut_prompt: whether the row ended with a prompt without an answer, which is left out.
        tools: functions that the model may call, each {"name", "description", "parameters", ...}.
        no_tools: whether the row states explicitly, as the JSON text "[]", that there are no tools. LLaMA-Factory and
            MindSpeed-LLM then write the markers of the system text even around an empty text.
        empty_system: whether the row states explicitly, as an empty system message, that there is no system text. Only
            templates in Jinja distinguish it from a row without a system message.
    """

    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    cut_prompt: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    no_tools: bool = False
    empty_system: bool = False


def iter_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Yield every text of a conversation.

    Yields:
        (name of the field, text). The names appear in the reasons of rejected rows.
    """
    if conversation.system:
        yield "the system text", conversation.system
    for turn in conversation.turns:
        prompt = "a user's text" if turn.role == "user" else "a tool's reply"
        yield prompt, turn.prompt
        for reply in turn.replies:
            yield "a tool's reply", reply
        if turn.thought:
            yield "a thought", turn.thought
        yield "an answer" if turn.prompt or turn.role != "user" else "the text", turn.answer
        for call in turn.calls:
            yield "a function call", call.name
            yield "a function call", call.arguments
            if call.id:
                yield "a function call", call.id
        for source in turn.sources:
            yield "a tool's reply", source.name
            yield "a tool's reply", source.call_id
    for text in _strings(conversation.tools):
        yield "the tools", text


def map_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """Return a copy of a conversation with `change` applied to every text of `iter_texts`."""
    turns = [
        replace(
            turn,
            prompt=change(turn.prompt),
            answer=change(turn.answer),
            calls=tuple(FunctionCall(*map(change, call)) for call in turn.calls),
            replies=tuple(map(change, turn.replies)),
            thought=change(turn.thought),
            sources=tuple(ReplySource(*map(change, source)) for source in turn.sources),
        )
        for turn in conversation.turns
    ]
    tools = tuple(_with_strings(tool, change) for tool in conversation.tools)
    return replace(conversation, turns=turns, system=change(conversation.system), tools=tools)


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield key
            yield from _strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry)


def _with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with `change` applied to every string in it, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _with_strings(entry, change) for key, entry in value.items()}
    return [_with_strings(entry, change) for entry in value] if isinstance(value, list) else value


class InvalidRowError(Exception):
    """A row that cannot be used as a conversation; its message is the reason under which the row is counted."""
