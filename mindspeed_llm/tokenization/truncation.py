"""Truncate samples that are longer than the sequence.

The steps, in this order and only as far as needed to fit `capacity` tokens:

1. The oldest turns are left out, each of them completely. At least one turn remains, and what remains begins with a
   user's message, not with a tool's reply.
2. The user's text loses tokens in its middle, down to a quarter of `capacity` (a shorter text is not changed). If
   replies of tools follow it, the longest of all these texts does.
3. The answer loses its end, at the end of a character, and with it the end token: the model does not learn to stop
   there.

Prefix, system message and the markers around every message remain. The user's last question and all calls and
replies after it remain as well, apart from the one text of step 2. A sample without a question is skipped, and so is
one in which these texts leave no slot for the answer.

    capacity 8       p U U U U U U a | A A A E        p, a: markers   U: user   A: answer   E: end token
    after step 2     p U U a | A A A E                (a quarter of 8 is 2; the middle U's are removed)
    one more token   p U U a | A A A A E  →  p U U a | A A A A      (not trained to end)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.chat import Conversation, RenderedTurn, Renderer, Span
from mindspeed_llm.tokenization.encoded_texts import EncodedTextsWithOffsets, Ids, TokenOffsets
from mindspeed_llm.tokenization.tokenizer import Tokenizer

TOO_LONG = "longer than seq_length"
NO_ROOM = "prefix, system and markers exceed seq_length"
NOTHING_LEFT = "nothing left after cutting"
LENGTH_REASONS = frozenset({TOO_LONG, NO_ROOM, NOTHING_LEFT})  # a larger --seq-length may avoid these
WINDOW = 8  # tokens before a cut that are decoded to detect a split character
INCOMPLETE = "\ufffd"  # result of decoding bytes that are not a complete character
SLIDE = 8  # tokens by which the cut in the user's text may move to avoid splitting a character


class CannotTruncateError(Exception):
    """A sample cannot be truncated to fit; the message is the reason."""


@dataclass
class SampleTruncator:
    """Truncate samples to a maximum number of tokens.

    Args:
        template: chat template that renders the conversations.
        tokenizer: tokenizer of the samples.
        assemble: turns of a rendered conversation → (ids, labels), int32 [tokens] each, as for samples that fit.
        special_id: (kind, text) of a span that is one special token → its id; None if the tokenizer does not have it.
        capacity: maximum number of tokens of a sample.
    """

    template: Renderer
    tokenizer: Tokenizer
    assemble: Callable[[list[RenderedTurn]], tuple[Ids, Ids]]
    special_id: Callable[[str, str], int | None]
    capacity: int

    def shorten(self, conversation: Conversation) -> tuple[Ids, Ids, list[str]]:
        """Truncate a conversation that is too long.

        Returns:
            ids and labels, int32 [tokens] with at most `capacity` tokens, and the names of the steps that were needed.

        Raises:
            CannotTruncateError: the texts that must remain are too long, or nothing of the answer is left.
        """
        turns = conversation.turns
        questions = [number for number, turn in enumerate(turns) if turn.role == "user"]
        for dropped in questions:
            # All turns together are known to be too long.
            if dropped == 0:
                continue
            ids, labels = self.assemble(self.template.render(replace(conversation, turns=turns[dropped:])))
            if len(ids) <= self.capacity:
                return ids, labels, ["oldest turns left out"]
        if not questions:
            raise CannotTruncateError(TOO_LONG)
        kept = replace(conversation, turns=turns[questions[-1] :])
        steps = ["oldest turns left out"] if questions[-1] else []
        rendered = self.template.render(kept)
        alone = len(kept.turns) == 1
        try:
            ids, labels, further = self._cut(_as_one_turn(rendered), *self.assemble(rendered))
        except CannotTruncateError:
            # The reasons for a single turn do not fit here: calls and replies have to stay, so the sample is too long.
            if alone:
                raise
            raise CannotTruncateError(TOO_LONG) from None
        return ids, labels, steps + further

    def _cut(self, rendered: RenderedTurn, ids: Ids, labels: Ids) -> tuple[Ids, Ids, list[str]]:
        """Apply steps 2 and 3.

        Args:
            rendered: all turns as one.
            ids: ids of the complete sample, int32 [tokens].
            labels: labels of the complete sample, int32 [tokens].

        Returns:
            ids and labels of the truncated sample, and the names of the steps that were needed.

        Raises:
            CannotTruncateError: the markers are too long, or nothing of the answer is left.
        """
        prompt, user_start, user_end, answer_start, answer_end = self._message_bounds(rendered)
        user, capacity = user_end - user_start, self.capacity
        # Only the user's text may be shortened, so everything else of the prompt counts as markers.
        markers = answer_start - user
        if markers > capacity:
            raise CannotTruncateError(NO_ROOM)

        # The user's text keeps a quarter of the capacity, rounded up. What is still too long after that is cut off the
        # answer.
        removed = min(len(ids) - capacity, max(0, user - -(-capacity // 4)))
        kept = np.ones(len(ids), bool)
        steps = []
        if removed > 0:
            steps.append("user texts shortened")
            start = _middle_start(prompt, user_start, user_end, removed)
            kept[start : start + removed] = False
        if len(ids) - removed > capacity:
            steps.append("answers cut")
            kept[
                character_end(self.tokenizer, ids, answer_start, min(capacity + removed, answer_end), answer_end) :
            ] = False
        if not kept[answer_start:answer_end].any():
            raise CannotTruncateError(NOTHING_LEFT)
        return ids[kept], labels[kept], steps

    def _message_bounds(self, rendered: RenderedTurn) -> tuple[TokenOffsets, int, int, int, int]:
        """Return the tokens of the prompt, or of all spans if they are joined, and the bounds of both messages.

        The bounds are indices of tokens in the sample: start and end of the user's message, then of the answer's.
        """
        if self.template.joined:
            # The tokenizer reads joined spans as one text, so a token may extend over the border of two spans.
            spans = [*rendered.prompt, *rendered.answer]
            tokens = self.tokenizer.encode_with_offsets("".join(span.text for span in spans))
            user, answer = _content_bounds(rendered.prompt), _content_bounds(rendered.answer)
            shift = sum(len(span.text) for span in rendered.prompt)
            user_start, user_end = _tokens_inside(tokens, *user)
            answer_start, answer_end = _tokens_inside(tokens, answer[0] + shift, answer[1] + shift)
            if user_start == user_end:  # no token is inside the user's message: all of them are markers
                user_start = user_end = answer_start
            return tokens, user_start, user_end, answer_start, answer_end
        prompt, user_start, user_end = self._message_tokens(rendered.prompt)
        _, answer_start, answer_end = self._message_tokens(rendered.answer)
        return prompt, user_start, user_end, answer_start + len(prompt.ids), answer_end + len(prompt.ids)

    def _message_tokens(self, spans: list[Span]) -> tuple[TokenOffsets, int, int]:
        """Return all tokens of `spans` and the first and last index of those of the message; the rest are markers."""
        ids: list[Ids] = [np.zeros(0, np.int32)]
        starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        bounds = (0, 0)
        offset, index = 0, 0
        for span in spans:
            if span.kind == "text":
                tokens = self.tokenizer.encode_with_offsets(span.text)
            else:
                token = self.special_id(span.kind, span.text)
                size = 0 if token is None else 1
                tokens = TokenOffsets(
                    np.array([token] * size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64)
                )
            first, last = span.content
            begin, end = _tokens_inside(tokens, first, last)
            if end > begin:
                bounds = (index + begin, index + end)
            ids.append(tokens.ids)
            starts.append(tokens.starts + offset)
            ends.append(tokens.ends + offset)
            index += len(tokens.ids)
            offset += max(1, len(span.text))
        joined = TokenOffsets(np.concatenate(ids), np.concatenate(starts), np.concatenate(ends))
        if bounds == (0, 0):
            bounds = (index, index)
        return joined, *bounds


def _as_one_turn(rendered: Sequence[RenderedTurn]) -> RenderedTurn:
    """Return all turns as the prompt of the last answer; only the longest message of a prompt may be shortened."""
    spans: list[Span] = []
    longest, longest_size = -1, 0
    for turn in rendered:
        for span in turn.prompt:
            size = span.content[1] - span.content[0]
            if size > longest_size:
                longest, longest_size = len(spans), size
            spans.append(span)
        if turn is not rendered[-1]:
            spans += turn.answer
    # The turns after the last question are calls and replies. Calls have to remain, so answers before the last one
    # count as markers.
    prompt = [span if number == longest else span._replace(content=(0, 0)) for number, span in enumerate(spans)]
    return RenderedTurn(prompt, rendered[-1].answer)


def _content_bounds(spans: Sequence[Span]) -> tuple[int, int]:
    """Return first and last + 1 character of the messages in the joined text of spans; (0, 0) without a message."""
    bounds, shift = (0, 0), 0
    for span in spans:
        if span.content != (0, 0):
            bounds = (bounds[0] if bounds != (0, 0) else span.content[0] + shift, span.content[1] + shift)
        shift += len(span.text)
    return bounds


def _tokens_inside(offsets: TokenOffsets, first: int, last: int) -> tuple[int, int]:
    """Return the bounds of the tokens that are inside the characters first…last; (n, n) if there are none."""
    inside = (
        np.flatnonzero((offsets.starts >= first) & (offsets.ends <= last)) if last > first else np.zeros(0, np.int64)
    )
    return (int(inside[0]), int(inside[-1]) + 1) if inside.size else (len(offsets.ids), len(offsets.ids))


def character_end(tokenizer: Tokenizer, ids: Ids, start: int, cut: int, end: int) -> int:
    """Return the largest index up to `cut` at which `ids` can be cut without splitting a character; `start` if none.

    Tokens of byte-level BPE and of SentencePiece's byte fallback are bytes: one character may be several tokens.

    Args:
        tokenizer: tokenizer of the ids.
        ids: token ids, int32 [tokens].
        start: index of the first token of the text.
        cut: index between `start` and `end`.
        end: index after the last token of the text.
    """
    for index in range(cut, start, -1):
        if index == end:
            return index
        first = _complete_token(tokenizer, ids, start, index)
        text = tokenizer.decode(ids[first:index].tolist())
        if not text.endswith(INCOMPLETE):
            return index
        # The replacement character may also be a character of the data: then decoding the two parts loses nothing.
        rest, complete = tokenizer.decode(ids[index:end].tolist()), tokenizer.decode(ids[first:end].tolist())
        if text + rest == complete:
            return index
    return start


def _complete_token(tokenizer: Tokenizer, ids: Ids, start: int, cut: int) -> int:
    """Return the last token, at least WINDOW before `cut`, that is made of complete characters; else `start`."""
    for first in range(cut - WINDOW, start, -1):
        if INCOMPLETE not in tokenizer.decode([int(ids[first])]):
            return first
    return start


def split_by_spans(
    encoded: EncodedTextsWithOffsets, spans: Sequence[Span], bounds: Sequence[int]
) -> tuple[Ids, NDArray[np.int64]]:
    """Divide the tokens of texts among the spans that each text is made of.

    A token that extends from one span into a trained one belongs to the trained one, as in transformers.

    Args:
        encoded: tokens of each text, which is the joined texts of its spans.
        spans: the spans of all texts, in order.
        bounds: index of the first span of each text, and the end.

    Returns:
        ids, int32 [tokens], and the number of tokens of each span, int64 [spans].
    """
    if not spans:
        return encoded.texts.ids, np.zeros(0, np.int64)
    # Offsets and spans are compared in characters of all texts joined.
    span_ends = np.cumsum([len(span.text) for span in spans])
    first_characters = np.concatenate([[0], span_ends])[bounds]
    counts = np.diff(encoded.texts.bounds)
    shift, last_span = np.repeat(first_characters[:-1], counts), np.repeat(np.array(bounds[1:]) - 1, counts)
    trained = np.array([span.trained for span in spans])
    starts, ends = encoded.starts + shift, encoded.ends + shift
    owner = np.searchsorted(span_ends, starts, side="right")
    # What SentencePiece's normalizer writes for one character may be several tokens ("1⁄2" for "½"). The library gives
    # the character to the last of them. Those before it have no width and remain with the text before the character.
    owner = np.where(starts == ends, np.searchsorted(span_ends, starts, side="left"), owner)
    owner = np.clip(owner, np.repeat(np.array(bounds[:-1]), counts), last_span)
    following = np.minimum(owner + 1, last_span)
    moved = (ends > span_ends[owner]) & ~trained[owner] & trained[following]
    return encoded.texts.ids, np.bincount(np.where(moved, following, owner), minlength=len(spans))


def _middle_start(offsets: TokenOffsets, start: int, end: int, removed: int) -> int:
    """Return the first of `removed` tokens to take out of the middle of start…end.

    The result is near the middle such that no character is split, or exactly there if every cut nearby splits one.
    """
    centre = start + (end - start - removed + 1) // 2
    # The nearest cut first: 0, +1, -1, +2, … tokens from the exact middle.
    for step in range(2 * SLIDE + 1):
        first = centre + (step // 2 + 1 if step % 2 else -(step // 2))
        if start <= first <= end - removed and offsets.is_clean_cut(first) and offsets.is_clean_cut(first + removed):
            return first
    return centre
