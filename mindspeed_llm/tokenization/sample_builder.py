"""From rendered conversations to ids and labels, many at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import IGNORED
from mindspeed_llm.chat import Conversation, InvalidRowError, RenderedTurn, Renderer, Span
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.control_tokens import ControlTokenFinder, FoundControls
from mindspeed_llm.tokenization.tokenizer import Ids, Tokenizer
from mindspeed_llm.tokenization.truncation import (
    TOO_LONG,
    CannotTruncateError,
    SampleTruncator,
    character_end,
    split_by_spans,
)

OVERLONG = ("truncate", "drop", "error")
NO_TRAINED_TOKEN = "no trained token"


@dataclass
class TokenBatch:
    """The samples that came out of some conversations, in their order, one after the other.

        ids      5  6  7  8  9 | 5  6  7        labels are not shifted: -100, or the id itself
        labels   .  .  .  8  9 | .  .  7        (the end token at the start of a later prompt, see chat.Span.end_label)
        lengths  5, 3

    Attributes:
        ids, labels: int32 [tokens].
        lengths: int32 [samples].
        skipped: (number of the conversation, reason) of those that gave no sample.
        truncated: samples that were cut.
        end_inside: an end token stands inside a sample, before its last token.
        unended: samples that do not end with the end token and leave room for another in their pack.
        steps: how often each way of cutting was needed.
        controls: number of a conversation → control tokens in its text; only of those that have any.
    """

    ids: Ids
    labels: Ids
    lengths: NDArray[np.int32]
    skipped: list[tuple[int, str]] = field(default_factory=list)
    truncated: int = 0
    end_inside: bool = False
    unended: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    controls: dict[int, FoundControls] = field(default_factory=dict)


def find_end_token(tokenizer: Tokenizer, template: Renderer) -> int:
    """The id of the token that ends an answer, and at which training may split a pack: the template's, if it names one.

    Raises:
        ConfigError: the tokenizer has no end token, or lacks a token of the template.
    """
    missing = [token for token in template.tokens if tokenizer.token_id(token) is None]
    if missing:
        raise ConfigError(
            f"--prompt-type {template.name}: the tokenizer lacks {', '.join(missing)}; "
            "take the template of this tokenizer's model, or the tokenizer of the template's "
            "(in a template of your own 'plain_markers' lists what is no token)"
        )
    end = tokenizer.token_id(template.end_token) if template.end_token else tokenizer.eos_id
    if end is None:
        raise ConfigError(
            "the tokenizer has no end token, so that answers could not be ended; "
            "name one as eos_token in its tokenizer_config.json"
        )
    return end


class SampleBuilder:
    """Turns conversations into samples; several threads may ask at a time.

    Args:
        capacity: most tokens of a sample; None for no bound.
        append_end: end every sample with the end token, trained, if it does not end with it already.
        overlong: 'truncate', or 'drop' and 'error', with which too long ones are skipped.
        train_prompts: prompts are trained too.
        mask_history: of several answers only the last is trained.
        divide: one that is too long is divided into several samples, not cut (documents without roles).
        controls: what becomes of control tokens in the text, see `control_tokens`.

    Attributes:
        eos_id: see `find_end_token`.

    Raises:
        ConfigError: the tokenizer does not fit the template.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Renderer,
        capacity: int | None,
        append_end: bool = False,
        overlong: str = "truncate",
        *,
        train_prompts: bool = False,
        mask_history: bool = False,
        divide: bool = False,
        controls: str = "keep",
    ) -> None:
        assert overlong in OVERLONG and not (train_prompts and mask_history)
        self.train_prompts, self.mask_history, self.divide = train_prompts, mask_history, divide
        self._controls = ControlTokenFinder(tokenizer, template, controls)
        self.tokenizer, self.template = self._controls.tokenizer, template
        self.capacity, self.append_end, self.overlong = capacity, append_end, overlong
        self.eos_id = find_end_token(tokenizer, template)
        self._closing, self._joined = template.closing, template.joined
        self._single: dict[int, Ids] = {}
        self._none = np.zeros(0, np.int32)

    def build(self, conversations: Sequence[Conversation]) -> TokenBatch:
        """The samples of `conversations`."""
        found = [self._controls.found(conversation) for conversation in conversations]
        conversations, rendered, refused = self._render(conversations, found)
        known: dict[str, Ids] = {}
        tokens = self._span_tokens(rendered, known)
        parts: list[Ids] = []
        flags: list[bool] = []
        end_labels: list[int] = []
        rows = [0]
        for turns in rendered:
            if turns:
                more, trained, ends = self._lay_out(turns, tokens)
                end_labels += [len(parts) + end for end in ends]
                parts += more
                flags += trained
            rows.append(len(parts))
        ids, labels, part_sizes = self._join(parts, flags, end_labels)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(part_sizes)])
        lengths = np.diff(before[rows]).astype(np.int32)
        batch = self._fitted(conversations, refused, known, ids, labels, lengths)
        batch.controls = {number: controls for number, controls in enumerate(found) if controls}
        return batch

    def _render(
        self, conversations: Sequence[Conversation], found: Sequence[FoundControls]
    ) -> tuple[list[Conversation], list[list[RenderedTurn]], dict[int, str]]:
        """Every conversation as it is rendered, and rendered; nothing, and the reason, for one that cannot be.

        Args:
            found: the control tokens in the text of each.
        """
        prepared = list(conversations)
        rendered: list[list[RenderedTurn]] = []
        refused: dict[int, str] = {}
        for number, (conversation, controls) in enumerate(zip(conversations, found, strict=True)):
            try:
                prepared[number] = self._controls.prepared(conversation, controls)
                rendered.append(self.template.render(prepared[number]))
            except InvalidRowError as reason:  # noqa: PERF203 - a row's own fault, and rare
                rendered.append([])
                refused[number] = str(reason)
        return prepared, rendered, refused

    def _span_tokens(self, rendered: Sequence[list[RenderedTurn]], known: dict[str, Ids]) -> Iterator[Ids]:
        """The tokens of every span in order.

        Args:
            known: the tokens of texts, filled: markers and system texts are the same in most rows.
        """
        spans = [[span for turn in turns for span in chain(*turn)] for turns in rendered]
        if self._joined:
            texts = ["".join(span.text for span in sample) for sample in spans]
            for places, sample in zip(self.tokenizer.encode_batch_with_offsets(texts), spans, strict=True):
                yield from split_by_spans(places, sample)
            return
        texts = [span.text for sample in spans for span in sample if span.kind == "text" and span.text not in known]
        different = list(dict.fromkeys(texts))
        known.update(zip(different, self.tokenizer.encode_batch(different), strict=True))
        for sample in spans:
            for span in sample:
                yield known[span.text] if span.kind == "text" else self._special(span)

    def _lay_out(self, turns: list[RenderedTurn], tokens: Iterator[Ids]) -> tuple[list[Ids], list[bool], list[int]]:
        """The parts of one sample, out of `tokens`: which are trained, and whose first label is the end token."""
        parts: list[Ids] = []
        flags: list[bool] = []
        end_labels: list[int] = []
        last = len(turns) - 1
        for number, (prompt, answer) in enumerate(turns):
            masked = self.mask_history and number < last
            for span in chain(prompt, answer):
                if span.end_label and not self.mask_history:
                    end_labels.append(len(parts))
                parts.append(next(tokens))
                flags.append((self.train_prompts and not span.untrainable) or (span.trained and not masked))
        trained = not any(span.untrainable for span in turns[-1].answer)
        for span in self._closing:
            parts.append(self._special(span))
            flags.append(span.trained and trained)
        if self.append_end and not self._ended(parts, flags, len(turns[-1].answer), trained):
            parts.append(self._one(self.eos_id))
            flags.append(trained)
        return parts, flags, end_labels

    def _ended(self, parts: list[Ids], flags: list[bool], answer: int, trained: bool) -> bool:
        """Whether a sample of these parts ends with the end token, but for what is never trained after it.

        Args:
            answer: spans of the last answer.
            trained: whether that is trained.
        """
        if trained:
            last = (part[-1] for part, flag in zip(reversed(parts), reversed(flags), strict=True) if flag and part.size)
            return next(last, None) == self.eos_id
        return any(part.size and part[-1] == self.eos_id for part in parts[-answer - len(self._closing) :])

    def _join(self, parts: list[Ids], flags: list[bool], end_labels: list[int]) -> tuple[Ids, Ids, NDArray[np.int64]]:
        sizes = np.fromiter(map(len, parts), np.int64, len(parts))
        ids = np.concatenate(parts) if parts else self._none
        labels = np.where(np.repeat(np.array(flags, bool), sizes), ids, np.int32(IGNORED))
        if end_labels and not self.train_prompts:
            starts = np.cumsum(sizes) - sizes
            labels[starts[end_labels]] = self.eos_id
        return ids, labels, sizes

    def _fitted(
        self,
        conversations: Sequence[Conversation],
        refused: dict[int, str],
        known: dict[str, Ids],
        ids: Ids,
        labels: Ids,
        lengths: NDArray[np.int32],
    ) -> TokenBatch:
        """The batch with what is too long cut, divided or left out; `known`: see `_span_tokens`."""
        batch = TokenBatch(ids, labels, lengths)
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        trained = np.concatenate([np.zeros(1, np.int64), np.cumsum(labels != IGNORED)])
        untrained = set(np.flatnonzero(trained[ends] == trained[starts]).tolist())
        too_long = set(np.flatnonzero(lengths > self.capacity).tolist()) if self.capacity is not None else set()
        if too_long or untrained:
            pieces: list[tuple[Ids, Ids]] = []
            for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                piece = (ids[start:end], labels[start:end])
                try:
                    if number in untrained:
                        raise CannotTruncateError(refused.get(number, NO_TRAINED_TOKEN))
                    if number in too_long:
                        cut, steps = self._cut(conversations[number], known, *piece)
                        batch.steps.update(steps)
                        if all((part == IGNORED).all() for _, part in cut):  # what is left is not to be trained
                            raise CannotTruncateError(NO_TRAINED_TOKEN)
                        pieces += cut
                    else:
                        pieces.append(piece)
                except (CannotTruncateError, InvalidRowError) as reason:
                    batch.skipped.append((number, str(reason)))
                else:
                    batch.truncated += number in too_long
            batch.ids = np.concatenate([self._none, *(piece[0] for piece in pieces)])
            batch.labels = np.concatenate([self._none, *(piece[1] for piece in pieces)])
            batch.lengths = np.array([len(piece[0]) for piece in pieces], np.int32)
        is_end = batch.ids == self.eos_id
        last = np.cumsum(batch.lengths, dtype=np.int64) - 1
        full = False if self.capacity is None else batch.lengths == self.capacity
        batch.unended = int(np.count_nonzero(~(is_end[last] | full)))
        is_end[last] = False
        batch.end_inside = bool(is_end.any())
        return batch

    def _cut(
        self, conversation: Conversation, known: dict[str, Ids], ids: Ids, labels: Ids
    ) -> tuple[list[tuple[Ids, Ids]], list[str]]:
        """What becomes of a sample that is too long, and the steps that were taken."""
        assert self.capacity is not None
        if self.overlong != "truncate":
            raise CannotTruncateError(TOO_LONG)
        if not self.divide:
            short_ids, short_labels, steps = self._shortened(conversation, known)
            return [(short_ids, short_labels)], steps
        pieces, first = [], 0
        while first < len(ids):
            cut = min(first + self.capacity, len(ids))
            end = character_end(self.tokenizer, ids, first, cut, len(ids))
            end = cut if end == first else end  # no whole character fits
            pieces.append((ids[first:end], labels[first:end]))
            first = end
        return pieces, ["documents divided"]

    def _shortened(self, conversation: Conversation, known: dict[str, Ids]) -> tuple[Ids, Ids, list[str]]:
        assert self.capacity is not None

        def assemble(turns: list[RenderedTurn]) -> tuple[Ids, Ids]:
            ids, labels, _ = self._join(*self._lay_out(turns, self._span_tokens([turns], known)))
            return ids, labels

        shortener = SampleTruncator(self.template, self.tokenizer, assemble, self._special_id, self.capacity)
        return shortener.shorten(conversation)

    def _special_id(self, span: Span) -> int | None:
        if span.kind == "begin":
            return self.tokenizer.bos_id  # none in tokenizers without one, as in MindSpeed-LLM
        return self.eos_id if span.kind == "end" else self.tokenizer.token_id(span.text)

    def _special(self, span: Span) -> Ids:
        number = self._special_id(span)
        return self._none if number is None else self._one(number)

    def _one(self, number: int) -> Ids:
        if number not in self._single:
            self._single[number] = np.array([number], np.int32)
        return self._single[number]
