"""What becomes of a sample that is longer than the sequence.

In turn, and only as far as needed to fit `capacity` tokens:

1. the oldest turns are left out, whole, as long as another turn remains, and so that what remains begins with what a
   user says, not with a tool's reply;
2. the user's text loses tokens in its middle, down to a quarter of `capacity` (a shorter one is left as it is); where
   replies of tools follow it, the longest of all these does;
3. the answer loses its end, up to the end of a character, and with it the end token: the model does not learn to stop
   there.

Prefix, system and the markers around every message stay, and so do the user's last question and all calls and replies
after it, but for the one text of step 2. A sample in which these leave no room, or without a question, is skipped.

    capacity 8       p U U U U U U a | A A A E        p, a: markers   U: user   A: answer   E: end token
    after step 2     p U U a | A A A E                (a quarter of 8 is 2; the middle U's are gone)
    one longer       p U U a | A A A A E  →  p U U a | A A A A      (not trained to end)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mindspeed_llm.chat import Conversation, RenderedTurn, Renderer, Span
from mindspeed_llm.tokenization.tokenizer import Ids, Tokenizer, TokenOffsets

TOO_LONG = "longer than seq_length"
NO_ROOM = "prefix, system and markers exceed seq_length"
NOTHING_LEFT = "nothing left after cutting"
LENGTH_REASONS = frozenset({TOO_LONG, NO_ROOM, NOTHING_LEFT})  # those that a greater --seq-length may help
WINDOW = 8  # tokens that tell whether a cut splits a character
INCOMPLETE = "\ufffd"  # what bytes that are no whole character are decoded to
SLIDE = 8  # how far the cut in the user's text may move so as not to split a character


class CannotTruncateError(Exception):
    """A sample that cannot be cut to fit; the message is the reason."""


@dataclass
class SampleTruncator:
    """Cuts samples to fit.

    Args:
        assemble: the whole sample of a rendered conversation → (ids, labels), as for samples that fit.
        capacity: most tokens of a sample.
    """

    template: Renderer
    tokenizer: Tokenizer
    assemble: Callable[[list[RenderedTurn]], tuple[Ids, Ids]]
    special_id: Callable[[Span], int | None]
    capacity: int

    def shorten(self, conversation: Conversation) -> tuple[Ids, Ids, list[str]]:
        """(ids, labels) of at most `capacity` tokens, and the steps that were taken.

        Raises:
            Unfit: what has to stay is too long, or nothing of the answer is left.
        """
        turns = conversation.turns
        questions = [number for number, turn in enumerate(turns) if turn.role == "user"]
        for dropped in questions:
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
        if len(rendered) != len(kept.turns):  # a tokenizer's own template that marks more or less than each answer
            raise CannotTruncateError(NO_ROOM if alone else TOO_LONG)
        try:
            ids, labels, further = self._cut(_as_one_turn(rendered), *self.assemble(rendered))
        except CannotTruncateError:
            if alone:
                raise
            raise CannotTruncateError(TOO_LONG) from None
        return ids, labels, steps + further

    def _cut(self, rendered: RenderedTurn, ids: Ids, labels: Ids) -> tuple[Ids, Ids, list[str]]:
        """Steps 2 and 3, and which of them were needed; `ids` and `labels` are the whole sample.

        Raises:
            Unfit: the markers are too long, or nothing of the answer is left.
        """
        prompt, user_start, user_end, answer_start, answer_end = self._places(rendered)
        user, capacity = user_end - user_start, self.capacity
        markers = answer_start - user
        if markers > capacity:
            raise CannotTruncateError(NO_ROOM)

        removed = min(len(ids) - capacity, max(0, user - -(-capacity // 4)))
        kept = np.ones(len(ids), bool)
        steps = []
        if removed > 0:
            steps.append("user texts shortened")
            start = _middle(prompt, user_start, user_end, removed)
            kept[start : start + removed] = False
        if len(ids) - removed > capacity:
            steps.append("answers cut")
            kept[
                character_end(self.tokenizer, ids, answer_start, min(capacity + removed, answer_end), answer_end) :
            ] = False
        if not kept[answer_start:answer_end].any():
            raise CannotTruncateError(NOTHING_LEFT)
        return ids[kept], labels[kept], steps

    def _places(self, rendered: RenderedTurn) -> tuple[TokenOffsets, int, int, int, int]:
        """Tokens with their places, and from where to where they are the user's message, and the answer's."""
        if self.template.joined:
            spans = [*rendered.prompt, *rendered.answer]
            found = self.tokenizer.encode_with_offsets("".join(span.text for span in spans))
            shift, user, answer = 0, (0, 0), rendered.answer[0].content
            for span in rendered.prompt:
                if span.content != (0, 0):
                    user = (span.content[0] + shift, span.content[1] + shift)
                shift += len(span.text)
            user_start, user_end = _inside(found, *user)
            answer_start, answer_end = _inside(found, answer[0] + shift, answer[1] + shift)
            if user_start == user_end:  # the user's words are not found in the text: all of it is markers
                user_start = user_end = answer_start
            return found, user_start, user_end, answer_start, answer_end
        prompt, user_start, user_end = self._message_tokens(rendered.prompt)
        _, answer_start, answer_end = self._message_tokens(rendered.answer)
        return prompt, user_start, user_end, answer_start + len(prompt.ids), answer_end + len(prompt.ids)

    def _message_tokens(self, spans: list[Span]) -> tuple[TokenOffsets, int, int]:
        """All tokens of `spans`, and from where to where they are the message: the rest are markers."""
        ids: list[Ids] = [np.zeros(0, np.int32)]
        starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        bounds = (0, 0)
        place, here = 0, 0
        for span in spans:
            if span.kind == "text":
                found = self.tokenizer.encode_with_offsets(span.text)
            else:
                token = self.special_id(span)
                size = 0 if token is None else 1
                found = TokenOffsets(
                    np.array([token] * size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64)
                )
            first, last = span.content
            begin, end = _inside(found, first, last)
            if end > begin:
                bounds = (here + begin, here + end)
            ids.append(found.ids)
            starts.append(found.starts + place)
            ends.append(found.ends + place)
            here += len(found.ids)
            place += max(1, len(span.text))
        joined = TokenOffsets(np.concatenate(ids), np.concatenate(starts), np.concatenate(ends))
        if bounds == (0, 0):
            bounds = (here, here)
        return joined, *bounds


def _as_one_turn(rendered: Sequence[RenderedTurn]) -> RenderedTurn:
    """All turns as the prompt of the last answer, in which the longest message of a prompt is the only one."""
    spans: list[Span] = []
    longest, most = -1, 0
    for turn in rendered:
        for span in turn.prompt:
            size = span.content[1] - span.content[0]
            if size > most:
                longest, most = len(spans), size
            spans.append(span)
        if turn is not rendered[-1]:
            spans += turn.answer
    prompt = [span if number == longest else span._replace(content=(0, 0)) for number, span in enumerate(spans)]
    return RenderedTurn(prompt, rendered[-1].answer)


def _inside(places: TokenOffsets, first: int, last: int) -> tuple[int, int]:
    """The tokens that lie wholly in the characters first…last; (n, n) if there is none."""
    inside = np.flatnonzero((places.starts >= first) & (places.ends <= last)) if last > first else np.zeros(0, np.int64)
    return (int(inside[0]), int(inside[-1]) + 1) if inside.size else (len(places.ids), len(places.ids))


def character_end(tokenizer: Tokenizer, ids: Ids, start: int, cut: int, end: int) -> int:
    """Return the greatest place up to `cut` where the text of `ids` [tokens] can be cut without splitting a character.

    Tokens of byte-level BPE and of SentencePiece's byte fallback are bytes: a character may be several of them.

    Args:
        start, end: where the text begins and ends, both of which split nothing.
        cut: between these.
    """
    for place in range(cut, start, -1):
        if place == end:
            return place
        first = _whole_token(tokenizer, ids, start, place)
        text = tokenizer.decode(ids[first:place].tolist())
        if not text.endswith(INCOMPLETE):
            return place
        rest, whole = tokenizer.decode(ids[place:end].tolist()), tokenizer.decode(ids[first:end].tolist())
        if text + rest == whole:  # the data contain this character
            return place
    return start


def _whole_token(tokenizer: Tokenizer, ids: Ids, start: int, place: int) -> int:
    """Return the last token, WINDOW or more before `place`, that stands for whole characters; else `start`."""
    for first in range(place - WINDOW, start, -1):
        if INCOMPLETE not in tokenizer.decode([int(ids[first])]):
            return first
    return start


def split_by_spans(places: TokenOffsets, spans: Sequence[Span]) -> list[Ids]:
    """The tokens of each of `spans`, whose texts, joined, have those of `places`.

    A token that reaches from one span into a trained one belongs to the trained one, as in transformers.
    """
    if not spans:
        return []
    bounds = np.cumsum([len(span.text) for span in spans])
    owner = np.minimum(np.searchsorted(bounds, places.starts, side="right"), len(spans) - 1)
    trained = np.array([span.trained for span in spans])
    following = np.minimum(owner + 1, len(spans) - 1)
    owner = np.where((places.ends > bounds[owner]) & ~trained[owner] & trained[following], following, owner)
    return [places.ids[owner == number] for number in range(len(spans))]


def _middle(places: TokenOffsets, start: int, end: int, removed: int) -> int:
    """Where to take `removed` tokens out of the middle of start…end, splitting no character if that can be had."""
    centre = start + (end - start - removed + 1) // 2
    for step in range(2 * SLIDE + 1):
        first = centre + (step // 2 + 1 if step % 2 else -(step // 2))
        if start <= first <= end - removed and places.is_clean_cut(first) and places.is_clean_cut(first + removed):
            return first
    return centre
