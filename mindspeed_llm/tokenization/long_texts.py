"""Shorten texts that are far longer than a sample may be, before they are tokenized.

Truncation (truncation.py) keeps at most `capacity` tokens of a text: tokens at its beginning and, of a user's text,
tokens at its end. So the middle of a very long text never matters, and a row of 10 MB need not be tokenized completely.

    text        0123456789 … … … … … … … … … … abcdefghij
    shortened   0123456789abcdefghij                          each half has more than `capacity` tokens

The result of truncation is the same, unless a token within the first or last `capacity` tokens depends on the text that
is left out. Tokenizers read words separately, so this can only happen in a text without white space over many tokens.
"""

from __future__ import annotations

from dataclasses import replace

from mindspeed_llm.chat import Conversation, Turn
from mindspeed_llm.tokenization.tokenizer import Tokenizer

HALF_PER_TOKEN = 16  # characters of a half per token of the capacity, to begin with
LONG_PER_TOKEN = 8 * HALF_PER_TOKEN  # a text is long if it has more characters than this per token of the capacity
MARGIN = 64  # tokens of a half beyond the capacity: the cut may move by a few tokens to avoid splitting a character


class LongTextShortener:
    """Leave out the middle of the long texts of a conversation. Function calls and descriptions of tools are kept.

    Args:
        tokenizer: tokenizer of the model.
        capacity: maximum number of tokens of a sample.
    """

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        self._tokenizer, self._capacity = tokenizer, capacity
        self._long = LONG_PER_TOKEN * capacity

    def shorten(self, conversation: Conversation) -> Conversation:
        """Return the conversation with shorter texts; itself if no text is long."""
        limit = self._long
        if len(conversation.system) <= limit and not any(
            len(text) > limit for turn in conversation.turns for text in (turn.prompt, turn.answer, *turn.replies)
        ):
            return conversation
        turns = [self._shorten_turn(turn) for turn in conversation.turns]
        return replace(conversation, turns=turns, system=self._shorten_text(conversation.system))

    def _shorten_turn(self, turn: Turn) -> Turn:
        return replace(
            turn,
            prompt=self._shorten_text(turn.prompt),
            answer=self._shorten_text(turn.answer),
            replies=tuple(map(self._shorten_text, turn.replies)),
        )

    def _shorten_text(self, text: str) -> str:
        """Return beginning and end of a long text, each with more tokens than the capacity."""
        half = HALF_PER_TOKEN * self._capacity
        while len(text) > max(self._long, 2 * half):
            halves = text[:half], text[-half:]
            if all(len(ids) > self._capacity + MARGIN for ids in self._tokenizer.encode_batch(halves)):
                return "".join(halves)
            half *= 4
        return text
