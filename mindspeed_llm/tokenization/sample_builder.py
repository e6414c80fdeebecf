"""Build samples of token ids and labels from rendered conversations, many at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import Conversation, InvalidRowError, RenderedTurn, Renderer, Span
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization.control_tokens import ControlTokenFinder, FoundControls
from mindspeed_llm.tokenization.encoded_texts import EncodedTexts, Ids
from mindspeed_llm.tokenization.long_texts import LongTextShortener
from mindspeed_llm.tokenization.sample_parts import SampleParts
from mindspeed_llm.tokenization.tokenizer import Tokenizer
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
        # A document that is too long is divided, and so tokenized completely.
        self._shortener = None if capacity is None or divide else LongTextShortener(self.tokenizer, capacity)
        self._closing, self._joined = template.closing, template.joined
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
        samples = self._assemble(rendered)
        batch = self._fit_to_capacity(conversations, rejected, samples)
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
                if self._shortener is not None:
                    prepared[number] = self._shortener.shorten(prepared[number])
                rendered.append(self.template.render(prepared[number]))
            except InvalidRowError as reason:  # noqa: PERF203 - one row must not end the batch
                rendered.append([])
                rejected[number] = str(reason)
        return prepared, rendered, rejected

    def _assemble(self, rendered: Sequence[list[RenderedTurn]], known: dict[str, Ids] | None = None) -> TokenBatch:
        """Tokenize rendered conversations, without a limit of their length.

        Args:
            rendered: turns of each conversation; none for a conversation that is rejected.
            known: text → its ids, int32 [tokens], of texts that need not be tokenized; new texts are added.

        Returns:
            A sample for each conversation, of no token for one that is rejected; `skipped` has those without a trained
            token.
        """
        parts = SampleParts()
        for turns in rendered:
            parts.add(turns, self._closing, self.append_end, self.mask_history)
        spans = parts.spans
        ids, sizes = self._joined_ids(parts) if self._joined else self._span_ids(spans, known)
        flags = np.array([span.trained or (self.train_prompts and not span.untrainable) for span in spans], bool)
        trained = np.repeat(flags, sizes)
        labels = np.where(trained, ids, np.int32(IGNORE_INDEX))
        ends = np.cumsum(sizes)
        counts = sizes * flags
        # With train_prompts the first token of the prompt is itself trained and keeps its label; the label trains the
        # end of an earlier answer, which mask_history excludes.
        if self._closing and not self.train_prompts and not self.mask_history:
            end_labels = [number for number, span in enumerate(spans) if span.end_label]
            labels[(ends - sizes)[end_labels]] = self.eos_id
            counts[end_labels] += 1
        bounds = np.concatenate([np.zeros(1, np.int64), ends])[parts.bounds]
        lengths = np.diff(bounds)
        if self.append_end:
            surplus = parts.surplus_ends(ids, trained, sizes, self.eos_id)
            dropped = bounds[1:][surplus] - 1
            ids, labels = np.delete(ids, dropped), np.delete(labels, dropped)
            lengths[surplus] -= 1
        totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])[parts.bounds]
        untrained = np.flatnonzero(totals[1:] == totals[:-1]).tolist()
        skipped = [(number, NO_TRAINED_TOKEN) for number in untrained]
        return TokenBatch(ids, labels, lengths.astype(np.int32), skipped)

    def _span_ids(self, spans: Sequence[Span], known: dict[str, Ids] | None) -> tuple[Ids, NDArray[np.int64]]:
        """Return the ids of all spans, int32 [tokens], and the number of tokens of each span, int64 [spans]."""
        # Markers and system texts are the same in most rows: each different text is tokenized once.
        texts: dict[str, int] = {}
        single: dict[tuple[str, str], int] = {}
        numbers = np.array(
            [
                texts.setdefault(span.text, len(texts))
                if span.kind == "text"
                else -1 - single.setdefault((span.kind, span.text), len(single))
                for span in spans
            ],
            np.int64,
        )
        tokens = [self._special_id(kind, text) for kind, text in single]
        encoded = self._encoded(list(texts), known).extended([[] if token is None else [token] for token in tokens])
        # The special tokens follow the texts.
        return encoded.gathered(np.where(numbers < 0, len(texts) - 1 - numbers, numbers))

    def _encoded(self, texts: list[str], known: dict[str, Ids] | None) -> EncodedTexts:
        """Return the ids of `texts`, from `known` if it is given."""
        if known is None:
            return self.tokenizer.encode_batch(texts)
        new = [text for text in texts if text not in known]
        known.update(zip(new, self.tokenizer.encode_batch(new), strict=True))
        return EncodedTexts.of_arrays([known[text] for text in texts])

    def _joined_ids(self, parts: SampleParts) -> tuple[Ids, NDArray[np.int64]]:
        """Return the same as `_span_ids` for a template whose spans are tokenized as one text per sample."""
        bounds = parts.bounds
        texts = ["".join([span.text for span in parts.spans[a:b]]) for a, b in pairwise(bounds)]
        return split_by_spans(self.tokenizer.encode_batch_with_offsets(texts), parts.spans, bounds)

    def _fit_to_capacity(
        self, conversations: Sequence[Conversation], rejected: dict[int, str], batch: TokenBatch
    ) -> TokenBatch:
        """Cut, divide or skip the samples of a batch that are too long, and skip those without a trained token.

        Args:
            conversations: the conversations of the batch.
            rejected: index → reason of conversations without a sample.
            batch: one sample per conversation, as `_assemble` returns them; it is changed.
        """
        ids, labels, lengths = batch.ids, batch.labels, batch.lengths
        # A rejected conversation has no tokens, so it is among the untrained ones.
        untrained = dict(batch.skipped) | rejected
        batch.skipped = []
        too_long = set(np.flatnonzero(lengths > self.capacity).tolist()) if self.capacity is not None else set()
        if too_long or untrained:
            ends = np.cumsum(lengths, dtype=np.int64)
            starts = ends - lengths
            pieces: list[tuple[Ids, Ids]] = []
            for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                piece = (ids[start:end], labels[start:end])
                try:
                    if number in untrained:
                        raise CannotTruncateError(untrained[number])
                    if number in too_long:
                        cut, steps = self._cut(conversations[number], *piece)
                        batch.steps.update(steps)
                        # The part that was cut off may have been the only trained one.
                        if all((part == IGNORE_INDEX).all() for _, part in cut):
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

    def _cut(self, conversation: Conversation, ids: Ids, labels: Ids) -> tuple[list[tuple[Ids, Ids]], list[str]]:
        """Return the pieces (ids, labels), [tokens] each, of a sample that is too long, and the steps of truncation.

        Raises:
            CannotTruncateError: samples are not to be cut, or this one cannot be.
        """
        assert self.capacity is not None
        if self.overlong != "truncate":
            raise CannotTruncateError(TOO_LONG)
        if not self.divide:
            short_ids, short_labels, steps = self._truncate(conversation)
            return [(short_ids, short_labels)], steps
        pieces, first = [], 0
        while first < len(ids):
            cut = min(first + self.capacity, len(ids))
            end = character_end(self.tokenizer, ids, first, cut, len(ids))
            end = cut if end == first else end  # not even one complete character fits
            pieces.append((ids[first:end], labels[first:end]))
            first = end
        return pieces, ["documents divided"]

    def _truncate(self, conversation: Conversation) -> tuple[Ids, Ids, list[str]]:
        """Return ids and labels [tokens] of a conversation cut to the capacity, and the steps of truncation."""
        assert self.capacity is not None

        known: dict[str, Ids] = {}  # each attempt renders most of the same texts again

        def assemble(turns: list[RenderedTurn]) -> tuple[Ids, Ids]:
            sample = self._assemble([turns], known)
            return sample.ids, sample.labels

        truncator = SampleTruncator(self.template, self.tokenizer, assemble, self._special_id, self.capacity)
        return truncator.shorten(conversation)

    def _special_id(self, kind: str, text: str) -> int | None:
        """Return the id of a span that is one special token; None if the tokenizer does not have it."""
        if kind == "begin":
            # Without a begin token nothing is written, as in MindSpeed-LLM.
            return self.tokenizer.bos_id
        return self.eos_id if kind == "end" else self.tokenizer.token_id(text)
