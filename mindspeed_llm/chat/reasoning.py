"""Place the reasoning of answers in a conversation, following Qwen 3's published template.

The reasoning (in identifiers: the thought) of an answer is the text between the opening and the closing marker. The
rendered conversation contains

- the reasoning of all answers after the last message of the user: the last answer, and function calls before it;
- no reasoning in the answers before that message: they are history;
- in the last answer always a reasoning block, which may be empty.

    data      u1 | <think>t1</think>a1    u2 | <think>t2</think>call    tool | a3
    rendered  u1 | a1                     u2 | [t2] call                tool | [] a3

An empty reasoning block belongs to the prompt and is not trained, because at inference it is part of the prompt that
turns reasoning off. With trains_empty it is trained as the model's own decision not to reason. With enabled=False the
reasoning in the data is left out. Reasoning that is not empty is trained with its answer.

With keeps_history every answer is written as if it were the last one, so it has always a reasoning block. Then the text
before an answer is exactly what the model read and generated before it:

    rendered  u1 | [t1] a1                u2 | [t2] call                tool | [] a3

docs/reasoning.md has a table of all combinations.

A row may also keep the reasoning in a field beside the text of the answer (Turn.thought). The text of the answer is
then written unchanged, except that the same reasoning is removed from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mindspeed_llm.chat.conversation import Turn
from mindspeed_llm.errors import ConfigError

# Values of `--reasoning-history`.
History = Literal["keep", "drop", "template"]


def refuse_options(
    name: str, enable_thinking: bool | None, reasoning_history: History | None, train_empty_reasoning: bool
) -> None:
    """Check that no option for reasoning is given for the template `name`, which has no reasoning.

    Raises:
        ConfigError: with one line for each option that is given.
    """
    given = {
        "--enable-thinking": enable_thinking is not None,
        "--reasoning-history": reasoning_history is not None,
        "--train-empty-reasoning": train_empty_reasoning,
    }
    if any(given.values()):
        raise ConfigError(
            [f"{flag}: the template {name} has no reasoning; omit the flag" for flag, used in given.items() if used]
        )


def last_question(turns: Sequence[Turn]) -> int:
    """Return the index of the last turn of the user: the answers before it are history.

    Args:
        turns: the turns of a conversation, oldest first. Without a user, all but the last one are history.
    """
    return max((number for number, turn in enumerate(turns) if turn.role == "user"), default=len(turns) - 1)


def split_thought(answer: str, opening: str, closing: str) -> tuple[str, str]:
    """Split an answer into (reasoning, text after it), the way Qwen 3's published template does.

    Args:
        answer: text of the answer.
        opening: marker before the reasoning, which the answer may lack.
        closing: marker after the reasoning.
    """
    if closing not in answer:
        return "", answer
    thought = answer.split(closing, 1)[0].rstrip("\n").split(opening)[-1].strip("\n")
    return thought, answer.split(closing)[-1].lstrip("\n")


@dataclass(frozen=True)
class ReasoningFormat:
    """How a chat template writes reasoning.

    Attributes:
        opening: marker before the reasoning, with its line breaks.
        closing: marker after the reasoning, with its line breaks.
        enabled: value of `--enable-thinking`; None if the flag is not given.
        trains_empty: whether an empty block is a label instead of context.
        keeps_history: whether the answers before the last message of the user have reasoning.
    """

    opening: str
    closing: str
    enabled: bool | None = None
    trains_empty: bool = False
    keeps_history: bool = False

    def with_options(
        self, enable_thinking: bool | None, reasoning_history: History | None, train_empty_reasoning: bool
    ) -> ReasoningFormat:
        """Return the format with the values of `--enable-thinking` and the two other flags.

        Combinations with the same result give equal formats. The published template has no reasoning in the history,
        so `drop` and `template` are the default.
        """
        if train_empty_reasoning and enable_thinking is None:
            enable_thinking = True
        return replace(
            self,
            enabled=enable_thinking,
            trains_empty=train_empty_reasoning or enable_thinking is True,
            keeps_history=reasoning_history == "keep",
        )

    @property
    def options(self) -> list[str | bool | None]:
        """Values that distinguish the format from others with the same markers, for the hash of the template."""
        # `enabled` implies `trains_empty` unless it is False. Values that are False are left out, so that the hashes
        # of templates without them are those of earlier versions.
        trains_off = self.trains_empty and self.enabled is False
        return [self.enabled, *(["keep"] if self.keeps_history else []), *(["train empty"] if trains_off else [])]

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
        last, question = len(turns) - 1, last_question(turns)
        opening, closing = self.opening.strip(), self.closing.strip()
        placed = []
        for number, turn in enumerate(turns):
            thought, rest = split_thought(turn.answer, opening, closing)
            if from_field := turn.thought.strip("\n"):
                # The text may repeat the reasoning of the field. Remove only such a copy: any other text is content.
                rest = rest if thought.strip() == from_field.strip() else turn.answer
                thought = from_field
            if self.enabled is False or (number < question and not self.keeps_history):
                thought = ""
            empty = not thought and (number == last or self.keeps_history)
            # As in the published template, also if the text already ends with a line break.
            if turn.calls and rest:
                rest += "\n"
            if thought or empty:
                rest = rest.lstrip("\n")
            if thought:
                rest = self.opening + thought + self.closing + rest
            placed.append((replace(turn, answer=rest), empty))
        return placed
