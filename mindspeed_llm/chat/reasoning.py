"""Place the reasoning of answers in a conversation, following Qwen 3's published template.

The reasoning (in identifiers: the thought) of an answer is the text between the opening and the closing marker. The
rendered conversation contains

- the reasoning of all answers after the last message of the user: the last answer, and function calls before it;
- no reasoning in the answers before that message: they are history;
- in the last answer always a reasoning block, which may be empty.

    data      u1 | <think>t1</think>a1    u2 | <think>t2</think>call    tool | a3
    rendered  u1 | a1                     u2 | [t2] call                tool | [] a3

An empty reasoning block belongs to the prompt and is not trained, because at inference it is part of the prompt that
turns reasoning off. With enabled=True or `train_empty` it is trained as the model's own decision not to reason. With
enabled=False the reasoning in the data is left out. Reasoning that is not empty is trained with its answer.

`history` changes which answers keep their reasoning: 'keep' all of them, 'drop' only the last answer.

    keep      u1 | [t1] a1                u2 | [t2] call                tool | [] a3
    drop      u1 | a1                     u2 | call                     tool | [] a3

docs/reasoning.md has all combinations.

A row may also keep the reasoning in a field beside the text of the answer (Turn.thought). The text of the answer is
then written unchanged, except that the same reasoning is removed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from mindspeed_llm.chat.conversation import Turn

ReasoningHistory = Literal["template", "keep", "drop"]


class ReasoningOptions(NamedTuple):
    """Options for the reasoning of the data.

    Attributes:
        history: value of `--reasoning-history`; None is the same as 'template'.
        train_empty: value of `--train-empty-reasoning`.
    """

    history: ReasoningHistory | None = None
    train_empty: bool = False


AS_PUBLISHED = ReasoningOptions()


@dataclass(frozen=True)
class ReasoningFormat:
    """How a chat template writes reasoning.

    Attributes:
        opening: marker before the reasoning, with its line breaks.
        closing: marker after the reasoning, with its line breaks.
        enabled: value of `--enable-thinking`; None if the flag is not given.
        history: value of `--reasoning-history`: which answers before the last one keep their reasoning.
        train_empty: value of `--train-empty-reasoning`: whether the empty block is trained in any case.
    """

    opening: str
    closing: str
    enabled: bool | None = None
    history: ReasoningHistory = "template"
    train_empty: bool = False

    def with_options(self, enabled: bool | None, history: ReasoningHistory, train_empty: bool) -> ReasoningFormat:
        """Return the format with other options; an option that changes nothing beside the others is left out."""
        if enabled is False:  # no answer has reasoning
            history = "template"
        return replace(self, enabled=enabled, history=history, train_empty=train_empty and enabled is not True)

    @property
    def trains_empty(self) -> bool:
        """Whether an empty reasoning block is trained instead of belonging to the prompt."""
        return bool(self.enabled) or self.train_empty

    @property
    def empty(self) -> str:
        """Text of an empty reasoning block."""
        return self.opening + self.closing

    def placed(self, turns: Sequence[Turn]) -> list[tuple[Turn, bool]]:
        """Place the reasoning in the answers of all turns.

        Args:
            turns: the turns of a conversation, oldest first.

        Returns:
            For each turn: a copy with the answer as it is rendered, and whether an empty reasoning block precedes it.
        """
        last = len(turns) - 1
        last_question = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=last)
        first_shown = {"keep": 0, "drop": last, "template": last_question}[self.history]
        placed = []
        for number, turn in enumerate(turns):
            thought, rest = self.split(turn.answer)
            if from_field := turn.thought.strip("\n"):
                # The text may repeat the reasoning of the field. Remove only such a copy: any other text is content.
                rest = rest if thought.strip() == from_field.strip() else turn.answer
                thought = from_field
            if self.enabled is False or number < first_shown:
                thought = ""
            # As in the published template, also if the text already ends with a line break.
            if turn.calls and rest:
                rest += "\n"
            if thought or number == last:
                rest = rest.lstrip("\n")
            if thought:
                rest = self.opening + thought + self.closing + rest
            placed.append((replace(turn, answer=rest), number == last and not thought))
        return placed

    def split(self, answer: str) -> tuple[str, str]:
        """Split an answer into (reasoning, text after it), the way the published template does."""
        opening, closing = self.opening.strip(), self.closing.strip()
        if closing not in answer:
            return "", answer
        thought = answer.split(closing, 1)[0].rstrip("\n").split(opening)[-1].strip("\n")
        return thought, answer.split(closing)[-1].lstrip("\n")
