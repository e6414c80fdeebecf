"""What every instruction format is turned into before a template sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class Turn:
    """One prompt and the answer to it.

    Attributes:
        prompt: what the user (or a tool) says.
        answer: what the model is trained to say.
        role: who speaks in `prompt`.
    """

    prompt: str
    answer: str
    role: Literal["user", "observation"] = "user"


@dataclass(slots=True)
class Conversation:
    """One row, understood.

    Attributes:
        turns: oldest first, at least one.
        system: the row's own system text; empty means the template's default.
        cut_prompt: the row ended with a prompt without answer, which is left out.
    """

    turns: list[Turn] = field(default_factory=list)
    system: str = ""
    cut_prompt: bool = False


class BadRow(Exception):  # noqa: N818 - a row, not an error of the program
    """A row that is not a conversation; the message is the reason under which it is counted."""
