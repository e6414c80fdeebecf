"""Where the thoughts of a reasoning model stand in a conversation, as Qwen 3's published chat template has it.

A thought is what an answer says between the opening and the closing words. The model sees

- the thoughts of the answers since the user last spoke (the last answer, and calls of functions before it),
- none of the answers before: they are history, and are shown without,
- in the last answer always a thought, if only an empty one.

    data      u1 | <think>t1</think>a1    u2 | <think>t2</think>call    tool | a3
    rendered  u1 | a1                     u2 | [t2] call                tool | [] a3

An empty thought is part of the prompt, and not trained: it is what is written for the model when it is asked not to
think. With enabled True it is trained instead, as the model's own choice not to think. With enabled False the
thoughts of the data are left out. A thought that is not empty is trained with its answer.

A thought may also stand apart from the answer's text (Turn.thought). The text is then written as it is, but for the
same thought in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mindspeed_llm.chat.conversation import Turn


@dataclass(frozen=True)
class ReasoningFormat:
    """How a template writes thoughts.

    Attributes:
        opening, closing: the words around a thought, with their line breaks.
        enabled: the value of --enable-thinking; None if it was not given.
    """

    opening: str
    closing: str
    enabled: bool | None = None

    @property
    def empty(self) -> str:
        """An empty thought."""
        return self.opening + self.closing

    def placed(self, turns: Sequence[Turn]) -> list[tuple[Turn, bool]]:
        """Each turn with its answer as the model is to see it, and whether an empty thought stands before that."""
        last = len(turns) - 1
        asked = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=last)
        found = []
        for number, turn in enumerate(turns):
            thought, rest = self._split(turn.answer)
            if apart := turn.thought.strip("\n"):
                rest = rest if thought.strip() == apart.strip() else turn.answer
                thought = apart
            if self.enabled is False or number < asked:
                thought = ""
            if turn.calls and rest:
                rest += "\n"
            if thought or number == last:
                rest = rest.lstrip("\n")
            if thought:
                rest = self.opening + thought + self.closing + rest
            found.append((replace(turn, answer=rest), number == last and not thought))
        return found

    def _split(self, answer: str) -> tuple[str, str]:
        """(thought, what follows), as the published template takes an answer apart."""
        opening, closing = self.opening.strip(), self.closing.strip()
        if closing not in answer:
            return "", answer
        thought = answer.split(closing, 1)[0].rstrip("\n").split(opening)[-1].strip("\n")
        return thought, answer.split(closing)[-1].lstrip("\n")
