"""Packs of a split → the micro-batches of one data-parallel rank.

Every rank reads its own packs from the files; nothing is broadcast. All ranks of one data-parallel
replica (its tensor and pipeline ranks) build the same micro-batch and keep what their stage needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mindspeed_llm.boundaries import (
    IGNORED,
    Boundaries,
    boundaries_from_end_tokens,
    boundaries_from_neat_mask,
    boundaries_of_one_segment,
    position_ids,
    shift_labels,
    trailing_padding,
)
from mindspeed_llm.data.micro_batch import MicroBatch, Normalization, loss_weights
from mindspeed_llm.data.packed_dataset import Pack, PackedDataset
from mindspeed_llm.data.sample_order import SampleOrder
from mindspeed_llm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DataLoaderSettings:
    """How packs become batches, the same for training and evaluation.

    Attributes:
        seq_length: slots of a pack (S).
        micro_batch_size: packs of a micro-batch (B).
        global_batch_size: packs of a step, over all ranks.
        data_parallel_rank, data_parallel_size: this rank among the replicas.
        needs_tokens: the first pipeline stage needs the input ids.
        needs_labels: the last pipeline stage needs the labels.
        normalization: see `loss_weights`.
        reset_position_ids: positions restart in every segment; plain packs are separated at their end tokens.
        reset_attention_mask: plain packs are separated at their end tokens, positions run on.
        eod, pad: the end token and the padding token; plain packs and unpacked samples need them.
        variable_seq_lengths: unpacked samples are padded to the longest of the micro-batch, not to seq_length.
        multiple: what that longest length is rounded up to, never above seq_length (--pad-to-multiple-of, and the
            tensor-parallel size under sequence parallel).
        vocabulary: if given, an id outside it is refused.
        pin_memory: put the tensors where a copy to an accelerator need not wait.
    """

    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    data_parallel_rank: int = 0
    data_parallel_size: int = 1
    needs_tokens: bool = True
    needs_labels: bool = True
    normalization: Normalization = "token"
    reset_position_ids: bool = True
    reset_attention_mask: bool = False
    eod: int | None = None
    pad: int | None = None
    variable_seq_lengths: bool = False
    multiple: int = 1
    vocabulary: int | None = None
    pin_memory: bool = False

    @property
    def split_at_end_tokens(self) -> bool:
        """Whether the samples of a plain pack are kept apart."""
        return self.reset_position_ids or self.reset_attention_mask

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of one rank in one step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)


@dataclass(frozen=True)
class _Row:
    """One pack or unpacked sample, read as far as this rank needs it.

    Attributes:
        boundaries: over `width` slots.
        input_ids, labels: integers, without the padding that an unpacked sample still lacks; None where not needed.
        slot_padding: slots of padding behind samples, in their segments (preprocessing's --pad-to-multiple-of).
    """

    boundaries: Boundaries
    input_ids: np.ndarray | None
    labels: np.ndarray | None
    slot_padding: int = 0

    @property
    def tokens(self) -> int:
        """Slots that are not padding."""
        return self.boundaries.tokens - self.slot_padding


class PackedDataLoader:
    """Builds the micro-batches of one rank.

    Args:
        dataset: the split.
        order: which pack comes when.
        settings: see BatchSettings.
        end: position at which the run ends, if not with a whole batch. What a batch has from there on is not trained
            and not counted: it is there so that every rank has as many micro-batches as the others.

    Raises:
        ConfigError: settings that the data cannot be batched with, naming the flag.
    """

    def __init__(
        self, dataset: PackedDataset, order: SampleOrder, settings: DataLoaderSettings, end: int | None = None
    ) -> None:
        per_round = settings.micro_batch_size * settings.data_parallel_size
        assert settings.global_batch_size % per_round == 0, "arguments.layout_rules lets no such batch size through"
        assert 0 <= settings.data_parallel_rank < settings.data_parallel_size
        self.dataset = dataset
        self.order = order
        self.settings = settings
        self.end = end
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        settings = self.settings
        problems = []
        if not self.dataset.packed:
            if settings.pad is None:
                problems.append("unpacked samples are padded: give --tokenizer-name-or-path for its padding token")
        elif not self.dataset.neat and (
            settings.pad is None or (settings.split_at_end_tokens and settings.eod is None)
        ):
            problems.append(
                "plain packs are separated at end tokens, and the files have no manifest that names it: "
                "give --tokenizer-name-or-path"
            )
        return problems

    def micro_batches(self, consumed_samples: int) -> Iterator[MicroBatch]:
        """The micro-batches of this rank for the global batch that begins at position `consumed_samples`.

        Micro-batch m of data-parallel rank r takes positions consumed + (m · DP + r) · B … + B.

        Raises:
            DataError: a pack that is damaged or does not fit, by name.
        """
        settings = self.settings
        for m in range(settings.micro_batches_per_step):
            turn = m * settings.data_parallel_size + settings.data_parallel_rank
            start = consumed_samples + turn * settings.micro_batch_size
            packs = self.order.positions(start, settings.micro_batch_size)
            left = len(packs) if self.end is None else min(max(self.end - start, 0), len(packs))
            yield self.batch_of(packs, left)

    def sample_ids(self, consumed_samples: int) -> list[tuple[str, int]]:
        """(prefix, number of the pack) of a whole global batch, over all ranks, in order."""
        count = self.settings.global_batch_size
        if self.end is not None:
            count = min(count, max(self.end - consumed_samples, 0))
        packs = self.order.positions(consumed_samples, count)
        return [self.dataset.sample_id(int(pack)) for pack in packs]

    def batch_of(self, packs: np.ndarray, trained_packs: int | None = None) -> MicroBatch:
        """One micro-batch of the given packs of the split, pack after pack.

        Args:
            packs: their numbers in the split.
            trained_packs: only so many of them, the first ones, are trained and counted; None: all.
        """
        import torch

        settings = self.settings
        counted = len(packs) if trained_packs is None else trained_packs
        read = [self.dataset[int(pack)] for pack in packs]
        width = self._width(read)
        rows = [self._row(pack, width) for pack in read]
        starts = [row * width for row in range(len(rows))]
        ends = tuple(start + end for start, row in zip(starts, rows, strict=True) for end in row.boundaries.ends)
        slots = width * len(rows)
        restarts = ends if settings.reset_position_ids else tuple(start + width for start in starts)
        tokens = self._empty((1, slots), torch.int64) if settings.needs_tokens else None
        if tokens is not None:
            ids = tokens.numpy()[0]
            for start, row in zip(starts, rows, strict=True):
                assert row.input_ids is not None
                ids[start : start + len(row.input_ids)] = row.input_ids
                ids[start + len(row.input_ids) : start + width] = settings.pad if settings.pad is not None else 0
        labels, weights, denominator, trained = self._loss_parts(rows[:counted], starts, width * len(rows), ends)
        at = self._empty((slots,), torch.int64)
        at.numpy()[:] = position_ids(restarts)
        return MicroBatch(
            tokens=tokens,
            labels=labels,
            loss_weights=weights,
            loss_denominator=denominator,
            actual_seq_len=ends,
            positions=at,
            tokens_count=sum(row.tokens for row in rows[:counted]),
            slots=slots,
            samples=sum(row.boundaries.samples for row in rows[:counted]),
            trained_tokens=trained,
            sample_ids=tuple(pack.sample_id for pack in read[:counted]),
        )

    def _loss_parts(
        self, rows: list[_Row], starts: list[int], slots: int, ends: tuple[int, ...]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, int | None, int | None]:
        """labels int64 [1, T], weights float32 [1, T], divisor, trained tokens; all None where not needed."""
        if not self.settings.needs_labels:
            return None, None, None, None
        import torch

        stream = np.full(slots, IGNORED, dtype=np.int64)
        for start, row in zip(starts, rows, strict=False):
            assert row.labels is not None
            # Padding is never trained, whatever the file says there.
            kept = min(len(row.labels), row.boundaries.tokens)
            stream[start : start + kept] = row.labels[:kept]
        shifted = shift_labels(stream, ends)
        trained = shifted != IGNORED
        values, denominator = loss_weights(shifted, ends, self.settings.normalization)
        labels = self._empty((1, len(stream)), torch.int64)
        np.multiply(shifted, trained, out=labels.numpy()[0])  # 0 where nothing is trained
        weights = self._empty((1, len(stream)), torch.float32)
        weights.numpy()[0] = values
        return labels, weights, denominator, int(np.count_nonzero(trained))

    def _width(self, packs: list[Pack]) -> int:
        """Slots of one pack of this micro-batch."""
        settings = self.settings
        for pack in packs:
            if pack.length > settings.seq_length or (self.dataset.packed and pack.length != settings.seq_length):
                raise DataError(
                    f"{pack.name} has {pack.length} slots, --seq-length is {settings.seq_length}: "
                    f"preprocess again with --seq-length {settings.seq_length}, or give what the data were made for"
                )
        if self.dataset.packed or not settings.variable_seq_lengths:
            return settings.seq_length
        longest = max(pack.length for pack in packs)
        return min(-(-longest // settings.multiple) * settings.multiple, settings.seq_length)

    def _row(self, pack: Pack, width: int) -> _Row:
        """Read of `pack` what this rank needs: its attention_mask alone where that tells everything."""
        settings = self.settings
        plain = self.dataset.packed and not self.dataset.neat
        input_ids = pack.input_ids if settings.needs_tokens or plain else None
        labels = pack.labels if settings.needs_labels or plain else None
        if not self.dataset.packed:
            boundaries = boundaries_of_one_segment(width, width - pack.length)
        elif self.dataset.neat:
            try:
                boundaries = boundaries_from_neat_mask(pack.attention_mask)
            except DataError as error:
                raise DataError(f"{pack.name}: {error}") from None
        else:
            assert input_ids is not None and labels is not None and settings.pad is not None
            if settings.split_at_end_tokens:
                assert settings.eod is not None
                boundaries = boundaries_from_end_tokens(input_ids, labels, settings.eod, settings.pad)
            else:
                boundaries = boundaries_of_one_segment(width, trailing_padding(input_ids, labels, settings.pad))
        self._check_vocabulary(pack, input_ids, labels)
        return _Row(boundaries, input_ids, labels, pack.slot_padding if self.dataset.neat else 0)

    def _check_vocabulary(self, pack: Pack, input_ids: np.ndarray | None, labels: np.ndarray | None) -> None:
        vocabulary = self.settings.vocabulary
        if vocabulary is None:
            return
        for what, ids, least in (("input_ids", input_ids, 0), ("labels", labels, IGNORED)):
            if ids is not None and len(ids) and not (least <= int(ids.min()) and int(ids.max()) < vocabulary):
                raise DataError(
                    f"{pack.name}: {what} hold {int(ids.min())} … {int(ids.max())}, outside the vocabulary of "
                    f"{vocabulary}: made with another tokenizer, or --padded-vocab-size is too small"
                )

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=dtype, pin_memory=self.settings.pin_memory)
