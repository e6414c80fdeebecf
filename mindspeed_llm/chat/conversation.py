"""What every format of rows is turned into before a template sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Call(NamedTuple):
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
    calls: tuple[Call, ...] = ()
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


class BadRow(Exception):  # noqa: N818 - a row, not an error of the program
    """A row that is not a conversation; the message is the reason under which it is counted."""
