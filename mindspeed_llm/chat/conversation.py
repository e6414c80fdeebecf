"""What every format of rows is turned into before a template sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple


class FunctionCall(NamedTuple):
    """The model calls a function.

    Attributes:
        arguments: JSON, as text.
    """

    name: str
    arguments: str


@dataclass(slots=True)
class Turn:
    """One prompt and the answer to it.

    Attributes:
        prompt: what the user (or a tool) says.
        answer: what the model is trained to say; may be empty if there are calls.
        role: who speaks in `prompt`.
        calls: functions that the answer calls, after its text.
        replies: further replies of tools after `prompt`, where the answer before has called several.
        thought: what the model thinks before `answer`, where the row keeps it apart from the answer's text.
        trained: False if the row marks the answer as not to be trained.
        prompt_trained: False if it marks the prompt so, which matters where prompts are trained too.
    """

    prompt: str
    answer: str
    role: Literal["user", "observation"] = "user"
    calls: tuple[FunctionCall, ...] = ()
    replies: tuple[str, ...] = ()
    thought: str = ""
    trained: bool = True
    prompt_trained: bool = True


@dataclass(slots=True)
class Conversation:
    """One row, understood. Plain text is one turn with an empty prompt.

    Attributes:
        turns: oldest first, at least one.
        system: the row's own system text; empty means the template's default.
        cut_prompt: the row ended with a prompt without answer, which is left out.
        tools: functions that the model may call, each {"name", "description", "parameters", ...}.
        no_tools: the row says in so many words that there are none, as JSON: "[]". LLaMA-Factory and MindSpeed-LLM
            then write the markers of the system text, also around an empty one.
    """

    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    cut_prompt: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    no_tools: bool = False


def iter_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Yield every text that the row gives, each as (name of its field, text)."""
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
    for text in _strings(conversation.tools):
        yield "the tools", text


def map_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """Return the same conversation with `change` applied to every text of `iter_texts`."""
    turns = [
        replace(
            turn,
            prompt=change(turn.prompt),
            answer=change(turn.answer),
            calls=tuple(FunctionCall(change(call.name), change(call.arguments)) for call in turn.calls),
            replies=tuple(map(change, turn.replies)),
            thought=change(turn.thought),
        )
        for turn in conversation.turns
    ]
    tools = tuple(_with_strings(tool, change) for tool in conversation.tools)
    return replace(conversation, turns=turns, system=change(conversation.system), tools=tools)


def _strings(value: Any) -> Iterator[str]:
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
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _with_strings(entry, change) for key, entry in value.items()}
    return [_with_strings(entry, change) for entry in value] if isinstance(value, list) else value


class InvalidRowError(Exception):
    """A row that is not a conversation; the message is the reason under which it is counted."""
