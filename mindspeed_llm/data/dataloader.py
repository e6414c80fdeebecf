"""The dataloader: builds the micro-batches of one data-parallel rank from the packs of a split.

Every rank reads its packs from the files; nothing is broadcast. All tensor- and pipeline-parallel ranks of one
data-parallel rank build the same micro-batch, with only the tensors that their pipeline stage needs. `micro_batch.py`
draws an example.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from mindspeed_llm.boundaries import (
    IGNORE_INDEX,
    Boundaries,
    boundaries_from_end_tokens,
    boundaries_from_neat_mask,
    boundaries_of_one_segment,
    position_ids,
    segment_lengths,
    segment_starts,
    shift_labels,
    trailing_padding,
)
from mindspeed_llm.data.micro_batch import MicroBatch, Normalization, loss_weights
from mindspeed_llm.data.packed_dataset import Pack, PackedDataset
from mindspeed_llm.data.sample_order import SampleOrder
from mindspeed_llm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch


class NamedSample(Protocol):
    """A pack or block, with its identity."""

    @property
    def sample_id(self) -> tuple[str, int]:
        """Prefix of the files and number of the pack or block."""
        ...


Sample = TypeVar("Sample", bound=NamedSample)
Found = TypeVar("Found", covariant=True)


class SplitDataset(Protocol[Found]):
    """Protocol of the datasets of one split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Found: ...

    @property
    def sources(self) -> tuple[str, ...]:
        """Prefix of each data set."""
        ...

    def sample_id(self, index: int) -> tuple[str, int]:
        """Return the prefix of the files and the number of pack or block `index`."""
        ...


@dataclass(frozen=True)
class DataLoaderSettings:
    """Settings of a dataloader, for training and for evaluation.

    Attributes:
        seq_length: number of slots of a pack (S).
        micro_batch_size: number of packs of a micro-batch (B).
        global_batch_size: number of packs of a training step, over all ranks.
        data_parallel_rank: data-parallel rank of this process.
        data_parallel_size: number of data-parallel ranks.
        needs_tokens: whether this pipeline stage needs the token ids (the first stage).
        needs_labels: whether this pipeline stage needs labels and loss weights (the last stage).
        normalization: loss normalization; see `loss_weights`.
        reset_position_ids: restart the positions in every segment; plain packs are divided at their end tokens.
        reset_attention_mask: divide plain packs at their end tokens.
        eod: end token; needed for plain packs that are divided at end tokens.
        pad: padding token; needed for plain packs and for unpacked samples.
        variable_seq_lengths: pad unpacked samples to the longest sample of the micro-batch, not to `seq_length`.
        multiple: multiple to which that length is rounded up, but not above `seq_length` (--pad-to-multiple-of, and
            the tensor-parallel size with sequence parallelism).
        vocabulary: vocabulary size; token ids and labels outside of it are refused. None for no check.
        pin_memory: allocate the tensors in pinned memory, for asynchronous copies to an accelerator.
        virtual_tokens: reserved slots at the beginning of each sample of neat packs.
        trains_first_token: whether the last of these slots predicts the first token of its sample, if that is trained.
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
    virtual_tokens: int = 0
    trains_first_token: bool = True

    @property
    def split_at_end_tokens(self) -> bool:
        """Whether plain packs are divided into segments at their end tokens."""
        return self.reset_position_ids or self.reset_attention_mask

    @property
    def micro_batches_per_step(self) -> int:
        """Number of micro-batches of one data-parallel rank in one training step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)


@dataclass(frozen=True)
class SampleColumns:
    """The columns of one pack, unpacked sample or block that this rank needs.

    Attributes:
        boundaries: segments of the slots of the pack, padding included.
        input_ids: token ids, integers [length], without the padding which is appended to an unpacked sample; None if
            not needed.
        labels: labels, in the same form; those of a block are shifted.
        slot_padding: number of slots of padding inside segments, after their samples (--pad-to-multiple-of of
            preprocess_data.py).
    """

    boundaries: Boundaries
    input_ids: np.ndarray | None
    labels: np.ndarray | None
    slot_padding: int = 0

    def virtual_slots(self, count: int) -> np.ndarray:
        """Return the slots that are reserved for `count` virtual tokens of each sample, int64 [samples · count]."""
        starts = segment_starts(self.boundaries.ends)[: self.boundaries.samples]
        return (starts[:, None] + np.arange(count)).ravel()

    def tokens(self, virtual_tokens: int) -> int:
        """Return the number of slots that are neither padding nor reserved for virtual tokens."""
        return self.boundaries.tokens - self.slot_padding - self.boundaries.samples * virtual_tokens


class TokenDataLoader(Generic[Sample]):
    """Dataloader of one rank for one split; the base of `PackedDataLoader` and `BlockDataLoader`.

    Args:
        dataset: dataset of the split.
        order: order in which the packs or blocks are used.
        settings: batch sizes, data-parallel rank and treatment of the packs.
        end: position at which the run ends if the last global batch is not complete, or None. Packs from this position
            on are not trained and not counted. They fill the batch, because all data-parallel ranks must have the same
            number of micro-batches.

    Raises:
        ConfigError: A token that the dataset needs is unknown; the message names the flag.
    """

    def __init__(
        self, dataset: SplitDataset[Sample], order: SampleOrder, settings: DataLoaderSettings, end: int | None = None
    ) -> None:
        per_round = settings.micro_batch_size * settings.data_parallel_size
        assert settings.global_batch_size % per_round == 0, "arguments.layout_rules refuses such a batch size"
        assert 0 <= settings.data_parallel_rank < settings.data_parallel_size
        self.dataset = dataset
        self.order = order
        self.settings = settings
        self.end = end
        problems = self._problems()
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[str]:
        """Return what the dataset needs and the settings do not have, one line each."""
        return []

    @abstractmethod
    def _width(self, samples: Sequence[Sample]) -> int:
        """Return the number of slots of each pack or block of this micro-batch."""

    @abstractmethod
    def _row(self, sample: Sample, width: int) -> SampleColumns:
        """Read the columns of a pack or block that this rank needs."""

    @abstractmethod
    def _shifted_labels(
        self, rows: Sequence[SampleColumns], width: int, slots: int, ends: tuple[int, ...]
    ) -> np.ndarray:
        """Return the label of each slot of the stream, shifted; int64 [T], -100 on slots that are not trained."""

    def _unlabelled(self, slots: int) -> np.ndarray:
        """Return labels of slots that are not trained; int64 [slots]."""
        return np.full(slots, IGNORE_INDEX, dtype=np.int64)

    def micro_batches(self, consumed_samples: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches of this rank for the global batch that starts at position `consumed_samples`.

        Micro-batch m of data-parallel rank r takes B positions from consumed_samples + (m · DP + r) · B on. B is the
        micro-batch size, DP the data-parallel size.

        Args:
            consumed_samples: number of packs that the run has used before.

        Yields:
            Micro-batches with tensors on the host.

        Raises:
            DataError: A pack is damaged, or does not match the settings. The message names the pack.
        """
        settings = self.settings
        for m in range(settings.micro_batches_per_step):
            number = m * settings.data_parallel_size + settings.data_parallel_rank
            start = consumed_samples + number * settings.micro_batch_size
            packs = self.order.positions(start, settings.micro_batch_size)
            before_end = len(packs) if self.end is None else min(max(self.end - start, 0), len(packs))
            yield self.batch_of(packs, before_end)

    def sample_ids(self, consumed_samples: int) -> list[tuple[str, int]]:
        """Return (prefix, number of the pack) of each pack of a global batch, over all ranks, in order.

        Args:
            consumed_samples: position at which the global batch starts.
        """
        count = self.settings.global_batch_size
        if self.end is not None:
            count = min(count, max(self.end - consumed_samples, 0))
        packs = self.order.positions(consumed_samples, count)
        return [self.dataset.sample_id(int(pack)) for pack in packs]

    def batch_of(self, packs: np.ndarray, trained_packs: int | None = None) -> MicroBatch:
        """Build a micro-batch of the given packs.

        Args:
            packs: numbers of the packs in the split; integers [B].
            trained_packs: number of packs, from the first, that are trained and counted; None for all.

        Returns:
            The micro-batch, with tensors on the host.

        Raises:
            DataError: A pack is damaged, or does not match the settings. The message names the pack.
        """
        # Not at the top of the module: importing this package must not import torch.
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
        # Tensors are filled through numpy views of their memory, which may be pinned: no further copy is needed.
        tokens = self._empty((1, slots), torch.int64) if settings.needs_tokens else None
        if tokens is not None:
            ids = tokens.numpy()[0]
            for start, row in zip(starts, rows, strict=True):
                assert row.input_ids is not None
                ids[start : start + len(row.input_ids)] = row.input_ids
                ids[start + len(row.input_ids) : start + width] = settings.pad if settings.pad is not None else 0
        # Packs that are not counted run through the model, too, but have no labels and no loss weights.
        labels, weights, denominator, trained = self._loss_parts(rows[:counted], width, slots, ends)
        positions = self._empty((slots,), torch.int64)
        positions.numpy()[:] = position_ids(restarts)
        return MicroBatch(
            tokens=tokens,
            labels=labels,
            loss_weights=weights,
            loss_denominator=denominator,
            actual_seq_len=ends,
            positions=positions,
            tokens_count=sum(row.tokens(settings.virtual_tokens) for row in rows[:counted]),
            slots=slots,
            samples=sum(row.boundaries.samples for row in rows[:counted]),
            trained_slots=trained,
            sample_ids=tuple(pack.sample_id for pack in read[:counted]),
            pack_slots=width,
            virtual_slots=self._virtual_slots(rows, starts),
        )

    def _virtual_slots(self, rows: list[SampleColumns], starts: list[int]) -> np.ndarray | None:
        """Return the reserved slots of all packs, int64 [samples · p]; None without virtual tokens."""
        count = self.settings.virtual_tokens
        if not count:
            return None
        return np.concatenate([start + row.virtual_slots(count) for start, row in zip(starts, rows, strict=True)])

    def _loss_parts(
        self, rows: Sequence[SampleColumns], width: int, slots: int, ends: tuple[int, ...]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, int | None, np.ndarray | None]:
        """Build labels int64 [1, T], loss weights float32 [1, T], divisor and trained slots; None if not needed."""
        if not self.settings.needs_labels:
            return None, None, None, None
        import torch

        shifted = self._shifted_labels(rows, width, slots, ends)
        trained = shifted != IGNORE_INDEX
        values, denominator = loss_weights(shifted, ends, self.settings.normalization)
        labels = self._empty((1, slots), torch.int64)
        # Not every cross entropy accepts -100, so these labels become 0, a valid id. Their loss weight is 0.
        np.multiply(shifted, trained, out=labels.numpy()[0])
        weights = self._empty((1, slots), torch.float32)
        weights.numpy()[0] = values
        return labels, weights, denominator, np.flatnonzero(trained)

    def _check_vocabulary(self, name: str, input_ids: np.ndarray | None, labels: np.ndarray | None) -> None:
        """Check ids and labels, integers [length], here, where their origin is known; the model sees only a tensor."""
        vocabulary = self.settings.vocabulary
        if vocabulary is None:
            return
        for column, ids, lowest in (("input_ids", input_ids, 0), ("labels", labels, IGNORE_INDEX)):
            if ids is not None and len(ids) and not (lowest <= int(ids.min()) and int(ids.max()) < vocabulary):
                raise DataError(
                    f"{name}: {column} hold {int(ids.min())} … {int(ids.max())}, outside the vocabulary of "
                    f"{vocabulary}: made with another tokenizer, or --vocab-size or --padded-vocab-size is too small"
                )

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        import torch

        return torch.empty(shape, dtype=dtype, pin_memory=self.settings.pin_memory)


class PackedDataLoader(TokenDataLoader[Pack]):
    """Dataloader of one rank for one split of packs or unpacked samples.

    Args:
        dataset: dataset of the split.
        order: as for `TokenDataLoader`.
        settings: as for `TokenDataLoader`.
        end: as for `TokenDataLoader`.

    Raises:
        ConfigError: A token that the dataset needs is unknown; the message names the flag.
    """

    dataset: PackedDataset

    def _problems(self) -> list[str]:
        settings = self.settings
        problems = []
        if not self.dataset.packed:
            if settings.pad is None:
                problems.append("unpacked samples need a padding token: give --tokenizer-name-or-path")
        elif not self.dataset.neat and (
            settings.pad is None or (settings.split_at_end_tokens and settings.eod is None)
        ):
            problems.append(
                "plain packs need an end token and a padding token, and the files have no manifest with these tokens: "
                "give --tokenizer-name-or-path"
            )
        return problems

    def _width(self, samples: Sequence[Pack]) -> int:
        settings = self.settings
        for pack in samples:
            if pack.length > settings.seq_length or (self.dataset.packed and pack.length != settings.seq_length):
                raise DataError(
                    f"{pack.name} has {pack.length} slots, --seq-length is {settings.seq_length}: "
                    f"preprocess again with --seq-length {settings.seq_length}, or use the length of the data"
                )
        if self.dataset.packed or not settings.variable_seq_lengths:
            return settings.seq_length
        # Lengths come from the index, so all ranks that share the micro-batch compute the same width without
        # communication, including pipeline stages that read no token ids.
        longest = max(pack.length for pack in samples)
        return min(-(-longest // settings.multiple) * settings.multiple, settings.seq_length)

    def _row(self, sample: Pack, width: int) -> SampleColumns:
        pack, settings = sample, self.settings
        # The attention mask of a neat pack is enough to find its segments; those of a plain pack follow from ids and
        # labels, so every pipeline stage reads both.
        plain = self.dataset.packed and not self.dataset.neat
        input_ids = pack.input_ids if settings.needs_tokens or plain else None
        labels = pack.labels if settings.needs_labels or plain else None
        if not self.dataset.packed:
            boundaries = boundaries_of_one_segment(width, width - pack.length)
        elif self.dataset.neat:
            try:
                boundaries = boundaries_from_neat_mask(pack.attention_mask)
            except DataError as error:
                # The function sees only the array, so the name of the pack is added here.
                raise DataError(f"{pack.name}: {error}") from None
            self._check_virtual_tokens(pack, boundaries)
        else:
            assert input_ids is not None and labels is not None and settings.pad is not None
            if settings.split_at_end_tokens:
                assert settings.eod is not None
                boundaries = boundaries_from_end_tokens(input_ids, labels, settings.eod, settings.pad)
            else:
                boundaries = boundaries_of_one_segment(width, trailing_padding(input_ids, labels, settings.pad))
        self._check_vocabulary(pack.name, input_ids, labels)
        return SampleColumns(boundaries, input_ids, labels, pack.slot_padding if self.dataset.neat else 0)

    def _check_virtual_tokens(self, pack: Pack, boundaries: Boundaries) -> None:
        count, lengths = self.settings.virtual_tokens, segment_lengths(boundaries.ends)[: boundaries.samples]
        if count and min(lengths, default=count + 1) <= count:
            raise DataError(
                f"{pack.name}: a sample has {min(lengths)} slots, which leaves no token beside {count} virtual tokens; "
                f"preprocess again with --virtual-tokens {count}"
            )

    def _shifted_labels(
        self, rows: Sequence[SampleColumns], width: int, slots: int, ends: tuple[int, ...]
    ) -> np.ndarray:
        stream = self._unlabelled(slots)
        for number, row in enumerate(rows):
            assert row.labels is not None
            # Padding is never trained, even if the file has labels there.
            length = min(len(row.labels), row.boundaries.tokens)
            stream[number * width : number * width + length] = row.labels[:length]
            count = self.settings.virtual_tokens
            if count and not self.settings.trains_first_token:
                last = row.virtual_slots(count)[count - 1 :: count]
                stream[number * width + last + 1] = IGNORE_INDEX
        return shift_labels(stream, ends)
