"""What becomes of a sample that is longer than the sequence.

In turn, and only as far as needed to fit `capacity` tokens:

1. the oldest turns are left out, whole, as long as another turn remains;
2. the user's text loses tokens in its middle, down to a quarter of `capacity` (a shorter one is left as it is);
3. the answer loses its end, and with it the end token: the model does not learn to stop there.

Prefix, system and the markers around every message stay. A sample in which these leave no room is skipped.

    capacity 8       p U U U U U U a | A A A E        p, a: markers   U: user   A: answer   E: end token
    after step 2     p U U a | A A A E                (a quarter of 8 is 2; the middle U's are gone)
    one longer       p U U a | A A A A E  →  p U U a | A A A A      (not trained to end)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.chat import Conversation, RenderedTurn, Span, Template
from mindspeed_llm.tokens.tokenizer import Ids, Places, Tokenizer

IGNORED = -100  # the label of a token that is not trained
TOO_LONG = "longer than seq_length"
NO_ROOM = "prefix, system and markers exceed seq_length"
NOTHING_LEFT = "nothing left after cutting"
SLIDE = 8  # how far the cut in the user's text may move so as not to split a character


class Unfit(Exception):  # noqa: N818 - a sample, not an error of the program
    """A sample that cannot be cut to fit; the message is the reason."""


@dataclass
class Shortener:
    """Cuts samples to fit.

    Args:
        assemble: the whole sample of a rendered conversation → (ids, labels), as for samples that fit.
        capacity: most tokens of a sample.
        counts: filled with how often each step was taken.
    """

    template: Template
    tokenizer: Tokenizer
    assemble: Callable[[list[RenderedTurn]], tuple[Ids, Ids]]
    special_id: Callable[[Span], int | None]
    capacity: int
    counts: Counter[str]

    def shorten(self, conversation: Conversation) -> tuple[Ids, Ids]:
        """(ids, labels) of at most `capacity` tokens.

        Raises:
            Unfit: the markers, prefix and system alone are too long, or nothing of the answer is left.
        """
        turns, system = conversation.turns, conversation.system
        for dropped in range(1, len(turns)):
            ids, labels = self.assemble(self.template.render(Conversation(turns[dropped:], system)))
            if len(ids) <= self.capacity:
                self.counts["oldest turns left out"] += 1
                return ids, labels
        last = Conversation(turns[-1:], system)
        (rendered,) = self.template.render(last)
        ids, labels = self.assemble([rendered])
        steps = ["oldest turns left out"] if len(turns) > 1 else []
        ids, labels = self._cut(rendered, ids, labels, steps)
        self.counts.update(steps)
        return ids, labels

    def _cut(self, rendered: RenderedTurn, ids: Ids, labels: Ids, steps: list[str]) -> tuple[Ids, Ids]:
        """Steps 2 and 3 on the one turn that is left, whose whole sample is `ids` and `labels`."""
        prompt, user_start, user_end = self._message_tokens(rendered.prompt)
        _, answer_start, answer_end = self._message_tokens(rendered.answer)
        answer_start, answer_end = answer_start + len(prompt.ids), answer_end + len(prompt.ids)
        user, capacity = user_end - user_start, self.capacity
        markers = answer_start - user
        if markers > capacity:
            raise Unfit(NO_ROOM)

        removed = min(len(ids) - capacity, max(0, user - -(-capacity // 4)))
        kept = np.ones(len(ids), bool)
        if removed > 0:
            steps.append("user texts shortened")
            start = _middle(prompt, user_start, user_end, removed)
            kept[start : start + removed] = False
        if len(ids) - removed > capacity:
            steps.append("answers cut")
            kept[min(capacity + removed, answer_end) :] = False
        if not kept[answer_start:answer_end].any():
            raise Unfit(NOTHING_LEFT)
        return ids[kept], labels[kept]

    def _message_tokens(self, spans: list[Span]) -> tuple[Places, int, int]:
        """All tokens of `spans`, and from where to where they are the message: the rest are markers."""
        ids: list[Ids] = []
        starts, ends = [], []
        bounds = (0, 0)
        place, here = 0, 0
        for span in spans:
            if span.kind == "text":
                found = self.tokenizer.encode_with_places(span.text)
            else:
                token = self.special_id(span)
                size = 0 if token is None else 1
                found = Places(np.array([token] * size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64))
            first, last = span.content
            if last > first:
                inside = np.flatnonzero((found.starts >= first) & (found.ends <= last))
                if inside.size:
                    bounds = (here + int(inside[0]), here + int(inside[-1]) + 1)
            ids.append(found.ids)
            starts.append(found.starts + place)
            ends.append(found.ends + place)
            here += len(found.ids)
            place += max(1, len(span.text))
        joined = Places(np.concatenate(ids), np.concatenate(starts), np.concatenate(ends))
        if bounds == (0, 0):
            bounds = (here, here)
        return joined, *bounds


def _middle(places: Places, start: int, end: int, removed: int) -> int:
    """Where to take `removed` tokens out of the middle of start…end, splitting no character if that can be had."""
    centre = start + (end - start - removed + 1) // 2
    for step in range(2 * SLIDE + 1):
        first = centre + (step // 2 + 1 if step % 2 else -(step // 2))
        if start <= first <= end - removed and places.clean_cut(first) and places.clean_cut(first + removed):
            return first
    return centre
