"""Apply `--reasoning-history` and `--train-empty-reasoning` to a template in Jinja.

The template decides what it writes, so the options work on what it reads and on what it has written:

    drop                    the reasoning of earlier answers is removed from the row before it is rendered
    keep                    the variables that make a template keep it are set; a row whose reasoning is not in the
                            rendered text is rejected
    template                nothing, the same as without the flag
    train_empty_reasoning   an empty reasoning block at the end of a prompt becomes the beginning of the answer

An exported template begins with `jinja_prefix`, so that at inference it writes what training saw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mindspeed_llm.chat.conversation import Conversation, InvalidRowError, Turn
from mindspeed_llm.chat.messages import THOUGHTS
from mindspeed_llm.chat.reasoning import History, last_question, split_thought
from mindspeed_llm.chat.renderer import RenderedTurn, Span

# Variables with which published templates are told to keep the reasoning of earlier answers, and their values for it.
KEEPING = {
    "preserve_thinking": True,
    "keep_past_thinking": True,
    "clear_thinking": False,
    "truncate_history_thinking": False,
}
# Markers of reasoning in published templates. The first pair also serves templates that contain none of them.
MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<|channel>thought", "<channel|>"),
)
PROBE = "\U000effff"  # a noncharacter


class JinjaReasoning:
    """The options for reasoning of a chat template in Jinja.

    Args:
        source: the template in Jinja.
        history: value of `--reasoning-history`.
        train_empty: value of `--train-empty-reasoning`.

    Attributes:
        variables: variables of the template that keep reasoning, with their values; empty unless `history` is "keep".
        options: what changes the samples, for the hash of the template; empty if nothing does.
        keeps: whether reasoning that the template leaves out makes a row bad.
        markers: opening and closing marker of reasoning that the options depend on; empty if they depend on none.
    """

    def __init__(self, source: str, history: History | None = None, train_empty: bool = False) -> None:
        self.keeps, self._drops, self._trains_empty = history == "keep", history == "drop", train_empty
        self._opening, self._closing = next((pair for pair in MARKERS if pair[1] in source), MARKERS[0])
        self.markers = (self._opening, self._closing) if self.keeps or self._drops else ()
        self.variables = {
            name: value for name, value in KEEPING.items() if self.keeps and re.search(rf"\b{name}\b", source)
        }
        self.options = [
            *([history] if self.keeps or self._drops else []),
            *(["train empty"] if train_empty else []),
        ]

    def prepare(self, conversation: Conversation) -> Conversation:
        """Return the conversation as the template is to read it: for "drop" without reasoning in the history."""
        question = last_question(conversation.turns)
        if not self._drops or not question:
            return conversation
        turns = [self._without_thought(turn) for turn in conversation.turns[:question]]
        return replace(conversation, turns=[*turns, *conversation.turns[question:]])

    def check_kept(self, conversation: Conversation, render: Callable[[Conversation], str]) -> None:
        """Check for "keep" that the template writes the reasoning of all answers.

        Args:
            conversation: the conversation of one row.
            render: renders a conversation into text.

        Raises:
            InvalidRowError: the template leaves reasoning out.
        """
        if not self.keeps:
            return
        # The text of a thought may occur elsewhere in the row. Rendered once more, each thought has a probe in it.
        turns = [self._probed(turn, f"{PROBE}{number}{PROBE}") for number, turn in enumerate(conversation.turns)]
        probes = [f"{PROBE}{number}{PROBE}" for number, turn in enumerate(turns) if turn != conversation.turns[number]]
        if not probes:
            return
        text = render(replace(conversation, turns=turns))
        if any(probe not in text for probe in probes):
            raise InvalidRowError("the chat template leaves reasoning out, which --reasoning-history keep keeps")

    def finish(self, turns: Sequence[RenderedTurn]) -> list[RenderedTurn]:
        """Return the rendered turns; with train_empty, an empty block at the end of a prompt moves to its answer.

        Args:
            turns: the turns of one conversation, with the text of the whole sample in order.
        """
        if not self._trains_empty:
            return list(turns)
        return [self._with_trained_block(turn) for turn in turns]

    @property
    def jinja_prefix(self) -> str:
        """Jinja to write before the exported template, so that it treats reasoning as in training."""
        kept = "".join(
            f"{{%- set {name} = {name} if {name} is defined else {str(value).lower()} %}}\n"
            for name, value in self.variables.items()
        )
        if not self._drops:
            return kept
        names = ", ".join(f"'{name}'" for name in THOUGHTS)
        return DROPPED.format(fields=names, opening=self._opening, closing=self._closing)

    def _without_thought(self, turn: Turn) -> Turn:
        _, rest = split_thought(turn.answer, self._opening, self._closing)
        return replace(turn, answer=rest, thought="")

    def _probed(self, turn: Turn, probe: str) -> Turn:
        """Return the turn with `probe` at the end of its reasoning, in the field and in the text."""
        changed: dict[str, Any] = {}
        if thought := turn.thought.rstrip():
            changed["thought"] = thought + probe + turn.thought[len(thought) :]
        inside, _ = split_thought(turn.answer, self._opening, self._closing)
        if inside.strip():
            before, closing, after = turn.answer.partition(self._closing)
            changed["answer"] = before.rstrip() + probe + before[len(before.rstrip()) :] + closing + after
        return replace(turn, **changed)

    def _with_trained_block(self, turn: RenderedTurn) -> RenderedTurn:
        if not turn.prompt or not turn.answer:
            return turn
        span = turn.prompt[-1]
        pattern = rf"{re.escape(self._opening)}\s*{re.escape(self._closing)}\s*\Z"
        # Only after the message: the text of a prompt may end like this itself.
        block = re.compile(pattern).search(span.text, span.content[1])
        if block is None:
            return turn
        thought = Span("text", block[0], True)
        if turn.answer[0].untrainable:
            thought = thought.without_labels()
        rest = [span._replace(text=span.text[: block.start()])] if block.start() else []
        return RenderedTurn([*turn.prompt[:-1], *rest], [thought, *turn.answer])


# Removes the reasoning of the answers before the last message of the user, the same as `prepare`. The last tag ends
# without a minus sign, because white space at the beginning of the template may be text of the sample.
DROPPED = """\
{{%- set kept = namespace(messages=[], asked=-1, user=false) -%}}
{{%- for message in messages -%}}
    {{%- if message.role == 'user' or (message.role == 'tool' and not kept.user) -%}}
        {{%- set kept.asked = loop.index0 -%}}
        {{%- set kept.user = kept.user or message.role == 'user' -%}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- for message in messages -%}}
    {{%- if message.role == 'assistant' and loop.index0 < kept.asked -%}}
        {{%- set message = dict(message.items() | rejectattr(0, 'in', [{fields}])) -%}}
        {{%- if message.content is string and '{closing}' in message.content -%}}
            {{%- set message = dict(message, content=message.content.split('{closing}')[-1].lstrip('\\n')) -%}}
        {{%- endif -%}}
    {{%- endif -%}}
    {{%- set kept.messages = kept.messages + [message] -%}}
{{%- endfor -%}}
{{%- set messages = kept.messages %}}
"""
