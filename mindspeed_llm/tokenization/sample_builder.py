"""Build samples of token ids and labels from rendered conversations, many at a time."""

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
    """The samples of a list of conversations, in the same order, one after the other.

        ids      5  6  7  8  9 | 5  6  7        labels are not shifted: -100, or the id itself
        labels   .  .  .  8  9 | .  .  7        (the end token at the start of a later prompt, see chat.Span.end_label)
        lengths  5, 3

    Attributes:
        ids: token ids, int32 [tokens].
        labels: labels of the tokens, int32 [tokens].
        lengths: number of tokens of each sample, int32 [samples].
        skipped: (index, reason) of each conversation that has no sample.
        truncated: number of conversations that were cut or divided.
        end_inside: whether a sample contains an end token before its last token.
        unended: number of samples that do not end with the end token, although another sample may follow in their pack.
        steps: number of conversations that needed each step of truncation.
        controls: index of a conversation → control tokens in its text, for the conversations that contain some.
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
    """Return the id of the token that ends an answer; training may split a pack after it.

    Args:
        tokenizer: tokenizer of the model.
        template: chat template; if it specifies no end token, the tokenizer's own is used.

    Raises:
        ConfigError: the tokenizer has no end token, or lacks a token of the template.
    """
    missing = [token for token in template.tokens if tokenizer.token_id(token) is None]
    if missing:
        raise ConfigError(
            f"--prompt-type {template.name}: the tokenizer lacks {', '.join(missing)}; "
            "use the template of this tokenizer's model, or the tokenizer of this template's model "
            "(in a custom template, list the markers that are not tokens in 'plain_markers')"
        )
    end = tokenizer.token_id(template.end_token) if template.end_token else tokenizer.eos_id
    if end is None:
        raise ConfigError(
            "the tokenizer has no end token, so answers cannot be ended; set eos_token in its tokenizer_config.json"
        )
    return end


class SampleBuilder:
    """Build samples from conversations; several threads may use one builder at the same time.

    Args:
        tokenizer: tokenizer of the model.
        template: chat template that renders the conversations.
        capacity: maximum number of tokens of a sample; None for no limit.
        append_end: end every sample with a trained end token, unless it already ends with one.
        overlong: 'truncate' cuts samples that are too long, 'drop' and 'error' skip them.
        train_prompts: train the prompts as well as the answers.
        mask_history: train only the last of several answers.
        divide: divide a sample that is too long into several ones, instead of cutting it (documents without roles).
        controls: how to read control tokens in the text, see `control_tokens`.

    Attributes:
        eos_id: id of the end token, see `find_end_token`.

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
        """Build the samples of `conversations`.

        Returns:
            The samples with ids and labels [tokens], and the reason for each conversation without a sample.

        Raises:
            Nothing for a single conversation: CannotTruncateError and InvalidRowError become entries of `skipped`.
        """
        found_controls = [self._controls.found(conversation) for conversation in conversations]
        conversations, rendered, rejected = self._render(conversations, found_controls)
        encoded: dict[str, Ids] = {}
        tokens = self._span_tokens(rendered, encoded)
        parts: list[Ids] = []
        flags: list[bool] = []
        end_labels: list[int] = []
        rows = [0]
        for turns in rendered:
            if turns:
                new_parts, trained, ends = self._sample_parts(turns, tokens)
                end_labels += [len(parts) + end for end in ends]
                parts += new_parts
                flags += trained
            rows.append(len(parts))
        ids, labels, part_sizes = self._join(parts, flags, end_labels)
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(part_sizes)])
        lengths = np.diff(before[rows]).astype(np.int32)
        batch = self._fit_to_capacity(conversations, rejected, encoded, ids, labels, lengths)
        batch.controls = {number: controls for number, controls in enumerate(found_controls) if controls}
        return batch

    def _render(
        self, conversations: Sequence[Conversation], found_controls: Sequence[FoundControls]
    ) -> tuple[list[Conversation], list[list[RenderedTurn]], dict[int, str]]:
        """Prepare and render each conversation.

        Args:
            conversations: conversations of the data.
            found_controls: the control tokens in the text of each conversation.

        Returns:
            The prepared conversations; their turns, empty for a conversation that is rejected; index → reason of those.
        """
        prepared = list(conversations)
        rendered: list[list[RenderedTurn]] = []
        rejected: dict[int, str] = {}
        for number, (conversation, controls) in enumerate(zip(conversations, found_controls, strict=True)):
            try:
                prepared[number] = self._controls.prepared(conversation, controls)
                rendered.append(self.template.render(prepared[number]))
            except InvalidRowError as reason:  # noqa: PERF203 - one row must not end the batch
                rendered.append([])
                rejected[number] = str(reason)
        return prepared, rendered, rejected

    def _span_tokens(self, rendered: Sequence[list[RenderedTurn]], encoded: dict[str, Ids]) -> Iterator[Ids]:
        """Yield the token ids of every span in order, int32 [tokens] per span.

        Args:
            rendered: turns of each conversation.
            encoded: token ids by text; new texts are added.
        """
        spans = [[span for turn in turns for span in chain(*turn)] for turns in rendered]
        if self._joined:
            texts = ["".join(span.text for span in sample) for sample in spans]
            for offsets, sample in zip(self.tokenizer.encode_batch_with_offsets(texts), spans, strict=True):
                yield from split_by_spans(offsets, sample)
            return
        # Markers and system texts are the same in most rows: each different text is tokenized once.
        texts = [span.text for sample in spans for span in sample if span.kind == "text" and span.text not in encoded]
        different = list(dict.fromkeys(texts))
        encoded.update(zip(different, self.tokenizer.encode_batch(different), strict=True))
        for sample in spans:
            for span in sample:
                yield encoded[span.text] if span.kind == "text" else self._special(span)

    def _sample_parts(
        self, turns: list[RenderedTurn], tokens: Iterator[Ids]
    ) -> tuple[list[Ids], list[bool], list[int]]:
        """Take the parts of one sample from `tokens`.

        Returns:
            Parts, int32 [tokens] each; whether each is trained; indices of those whose first label is the end token.
        """
        parts: list[Ids] = []
        flags: list[bool] = []
        end_labels: list[int] = []
        last = len(turns) - 1
        for number, (prompt, answer) in enumerate(turns):
            masked = self.mask_history and number < last
            for span in chain(prompt, answer):
                # This label trains the end of an earlier answer, which mask_history excludes.
                if span.end_label and not self.mask_history:
                    end_labels.append(len(parts))
                parts.append(next(tokens))
                flags.append((self.train_prompts and not span.untrainable) or (span.trained and not masked))
        # A row may exclude its last answer from training; the end of the sample is then excluded as well.
        trained = not any(span.untrainable for span in turns[-1].answer)
        for span in self._closing:
            parts.append(self._special(span))
            flags.append(span.trained and trained)
        if self.append_end and not self._ends_with_end_token(parts, flags, len(turns[-1].answer), trained):
            parts.append(self._single_token(self.eos_id))
            flags.append(trained)
        return parts, flags, end_labels

    def _ends_with_end_token(self, parts: list[Ids], flags: list[bool], answer: int, trained: bool) -> bool:
        """Return whether a sample ends with the end token, apart from untrained tokens after a trained one.

        Args:
            parts: parts of the sample, int32 [tokens] each.
            flags: whether each part is trained.
            answer: number of spans of the last answer.
            trained: whether the last answer may be trained.
        """
        if trained:
            last = (part[-1] for part, flag in zip(reversed(parts), reversed(flags), strict=True) if flag and part.size)
            return next(last, None) == self.eos_id
        return any(part.size and part[-1] == self.eos_id for part in parts[-answer - len(self._closing) :])

    def _join(self, parts: list[Ids], flags: list[bool], end_labels: list[int]) -> tuple[Ids, Ids, NDArray[np.int64]]:
        """Return ids and labels of joined parts, int32 [tokens], and the sizes of the parts, int64 [parts]."""
        sizes = np.fromiter(map(len, parts), np.int64, len(parts))
        ids = np.concatenate(parts) if parts else self._none
        labels = np.where(np.repeat(np.array(flags, bool), sizes), ids, np.int32(IGNORED))
        # With train_prompts the first token of the prompt is itself trained and keeps its label.
        if end_labels and not self.train_prompts:
            starts = np.cumsum(sizes) - sizes
            labels[starts[end_labels]] = self.eos_id
        return ids, labels, sizes

    def _fit_to_capacity(
        self,
        conversations: Sequence[Conversation],
        rejected: dict[int, str],
        encoded: dict[str, Ids],
        ids: Ids,
        labels: Ids,
        lengths: NDArray[np.int32],
    ) -> TokenBatch:
        """Return a batch in which samples that are too long are cut, divided or skipped; `encoded`: see `_span_tokens`.

        The arrays `ids` and `labels` are [tokens], `lengths` is [conversations].
        """
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
                    # A rejected conversation has no tokens, so it is among the untrained ones.
                    if number in untrained:
                        raise CannotTruncateError(rejected.get(number, NO_TRAINED_TOKEN))
                    if number in too_long:
                        cut, steps = self._cut(conversations[number], encoded, *piece)
                        batch.steps.update(steps)
                        # The part that was cut off may have been the only trained one.
                        if all((part == IGNORED).all() for _, part in cut):
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
        # Nothing follows a sample that fills its pack, so it needs no end token as a boundary.
        full = False if self.capacity is None else batch.lengths == self.capacity
        batch.unended = int(np.count_nonzero(~(is_end[last] | full)))
        is_end[last] = False
        batch.end_inside = bool(is_end.any())
        return batch

    def _cut(
        self, conversation: Conversation, encoded: dict[str, Ids], ids: Ids, labels: Ids
    ) -> tuple[list[tuple[Ids, Ids]], list[str]]:
        """Return the pieces (ids, labels), [tokens] each, of a sample that is too long, and the steps of truncation.

        Raises:
            CannotTruncateError: samples are not to be cut, or this one cannot be.
        """
        assert self.capacity is not None
        if self.overlong != "truncate":
            raise CannotTruncateError(TOO_LONG)
        if not self.divide:
            short_ids, short_labels, steps = self._truncate(conversation, encoded)
            return [(short_ids, short_labels)], steps
        pieces, first = [], 0
        while first < len(ids):
            cut = min(first + self.capacity, len(ids))
            end = character_end(self.tokenizer, ids, first, cut, len(ids))
            end = cut if end == first else end  # not even one complete character fits
            pieces.append((ids[first:end], labels[first:end]))
            first = end
        return pieces, ["documents divided"]

    def _truncate(self, conversation: Conversation, encoded: dict[str, Ids]) -> tuple[Ids, Ids, list[str]]:
        """Return ids and labels [tokens] of a conversation cut to the capacity, and the steps of truncation."""
        assert self.capacity is not None

        def assemble(turns: list[RenderedTurn]) -> tuple[Ids, Ids]:
            ids, labels, _ = self._join(*self._sample_parts(turns, self._span_tokens([turns], encoded)))
            return ids, labels

        truncator = SampleTruncator(self.template, self.tokenizer, assemble, self._special_id, self.capacity)
        return truncator.shorten(conversation)

    def _special_id(self, span: Span) -> int | None:
        """Return the id of a span that is one special token; None if the tokenizer does not have it."""
        if span.kind == "begin":
            # Without a begin token nothing is written, as in MindSpeed-LLM.
            return self.tokenizer.bos_id
        return self.eos_id if span.kind == "end" else self.tokenizer.token_id(span.text)

    def _special(self, span: Span) -> Ids:
        number = self._special_id(span)
        return self._none if number is None else self._single_token(number)

    def _single_token(self, number: int) -> Ids:
        if number not in self._single:
            self._single[number] = np.array([number], np.int32)
        return self._single[number]
