"""Conversations as the messages that templates in Jinja read: role, content, tool_calls and reasoning of OpenAI.

Conversation([Turn("2 + 3?", "5")], "Be brief.")
[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"},
 {"role": "assistant", "content": "5"}]
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.chat.content_marks import mark
from mindspeed_llm.chat.conversation import Conversation, Turn
from mindspeed_llm.chat.messages import THOUGHTS

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class MessageForm:
    """How a template expects messages.

    Attributes:
        reasoning: fields in which it reads reasoning, such as "reasoning_content".
        parts: whether content is a list of parts, [{"type": "text", "text": ...}], instead of text.
    """

    reasoning: tuple[str, ...] = ()
    parts: bool = False


def read_reasoning_fields(source: str) -> tuple[str, ...]:
    """Return the fields in which a template in Jinja reads reasoning: m.reasoning_content, m['thinking']."""
    return tuple(name for name in THOUGHTS if re.search(rf"""[.'"]{name}\b""", source))


@dataclass(frozen=True)
class ConversationMessages:
    """The messages of a conversation, with content as text.

    Attributes:
        messages: the messages; `final` converts them into the form of a template.
        prompts: for each turn the numbers of its messages before the answer: a user's text, or replies of tools.
        answers: for each turn the number of its answer.
    """

    messages: Messages
    prompts: list[range]
    answers: list[int]

    def final(self, form: MessageForm, numbers: Collection[int] = ()) -> Messages:
        """Return the messages in the form of a template.

        Args:
            form: the form.
            numbers: messages whose content gets marks (content_marks.py).
        """
        if not numbers and not form.parts:
            return self.messages
        copies = list(self.messages)
        for number in numbers:
            message = copies[number]
            # An answer without text may have calls instead, and templates distinguish these.
            if message["role"] != "assistant" or message["content"].strip():
                copies[number] = {**message, "content": mark(message["content"], number)}
        if form.parts:
            copies = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in copies]
        return copies


def create_messages(conversation: Conversation, reasoning: Sequence[str]) -> ConversationMessages:
    """Create the messages of a conversation; reasoning is written to all of the fields `reasoning`."""
    messages: Messages = []
    prompts, answers = [], []
    if conversation.system or conversation.empty_system:
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        first = len(messages)
        messages += _prompts(turn)
        prompts.append(range(first, len(messages)))
        answers.append(len(messages))
        messages.append(_answer(turn, reasoning))
    return ConversationMessages(messages, prompts, answers)


def _prompts(turn: Turn) -> Messages:
    """Return the messages before an answer."""
    if turn.role == "user":
        return [{"role": "user", "content": content} for content in (turn.prompt, *turn.replies)]
    messages: Messages = [{"role": "tool", "content": content} for content in (turn.prompt, *turn.replies)]
    for message, source in zip(messages, turn.sources, strict=False):
        if source.name:
            message["name"] = source.name
        if source.call_id:
            message["tool_call_id"] = source.call_id
    return messages


def _answer(turn: Turn, reasoning: Sequence[str]) -> dict[str, Any]:
    """Return the message of an answer."""
    answer: dict[str, Any] = {"role": "assistant", "content": turn.answer}
    if turn.thought:
        answer |= dict.fromkeys(reasoning, turn.thought)
    if turn.calls:
        answer["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in turn.calls
        ]
    return answer
