"""Packs → micro-batches of every rank."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from time_limits import HANG_SECONDS

from mindspeed_llm.data import DataLoaderSettings, DatasetShare, MicroBatch, PackedDataLoader, PackedDataset, prefetch
from mindspeed_llm.errors import ConfigError, DataError

S = 8
E, P = 2, 0


@dataclass
class Column:
    """One of the three files, in memory; remembers which documents were read."""

    documents: list[np.ndarray]
    read: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(document) for document in self.documents], dtype=np.int32)

    def __getitem__(self, number: int) -> np.ndarray:
        self.read.append(number)
        return self.documents[number]


@dataclass
class Files:
    """What PackedFiles offers, in memory."""

    input_ids: Column
    attention_mask: Column
    labels: Column
    prefix: Path = Path("data/alpaca")
    manifest: Any = None


def neat_files(packs: int, seed: int = 0) -> Files:
    """Packs of S slots with samples of random lengths; each id occurs once and so tells its origin."""
    rng = np.random.default_rng(seed)
    ids, masks, labels = [], [], []
    next_id = 10
    for _ in range(packs):
        lengths = rng.integers(1, 4, size=3)
        tokens = int(lengths.sum())
        lengths = lengths[: 2 if tokens > S else 3]
        tokens = int(lengths.sum())
        row = np.full(S, P, dtype=np.int32)
        row[:tokens] = np.arange(next_id, next_id + tokens)
        next_id += tokens
        mask = np.zeros(S, dtype=np.int32)
        mask[:tokens] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        label = np.where((mask > 0) & (rng.random(S) < 0.7), row, -100).astype(np.int32)
        ids.append(row)
        masks.append(mask)
        labels.append(label)
    return Files(Column(ids), Column(masks), Column(labels))


def columns_of(rows: list[tuple[list[int], list[int], list[int]]]) -> Files:
    ids, masks, labels = ([np.array(row[i], dtype=np.int32) for row in rows] for i in range(3))
    return Files(Column(ids), Column(masks), Column(labels))


def dataset_of(files: Files, packed: bool = True, neat: bool = True) -> PackedDataset:
    count = len(files.attention_mask.documents)
    component = DatasetShare(files, np.arange(count))  # type: ignore[arg-type]
    return PackedDataset([component], packed=packed, neat=neat)


def builder_of(dataset: PackedDataset, shuffle: bool = True, **settings: Any) -> PackedDataLoader:
    values = {"seq_length": S, "micro_batch_size": 1, "global_batch_size": 4, **settings}
    return PackedDataLoader(dataset, dataset.order(seed=7, shuffle=shuffle), DataLoaderSettings(**values))


def joined(batches: list[MicroBatch]) -> dict[str, list[Any]]:
    """The content of several micro-batches, whatever their size."""
    one: dict[str, list[Any]] = {"tokens": [], "labels": [], "weights": [], "positions": [], "ids": [], "lengths": []}
    for batch in batches:
        assert batch.tokens is not None and batch.labels is not None and batch.loss_weights is not None
        one["tokens"] += batch.tokens[0].tolist()
        one["labels"] += batch.labels[0].tolist()
        one["weights"] += batch.loss_weights[0].tolist()
        one["positions"] += batch.positions.tolist()
        one["ids"] += batch.sample_ids
        one["lengths"] += np.diff([0, *batch.actual_seq_len]).tolist()
    return one


def check_shapes(batch: MicroBatch) -> None:
    """What every batch promises."""
    ends = batch.actual_seq_len
    assert isinstance(ends, tuple) and all(type(end) is int for end in ends)
    assert ends[0] > 0 and ends[-1] == batch.slots and sorted(set(ends)) == list(ends)
    assert batch.positions.shape == (batch.slots,) and batch.positions.dtype == torch.int64
    assert batch.tokens is None or (batch.tokens.shape == (1, batch.slots) and batch.tokens.dtype == torch.int64)
    if batch.labels is not None:
        assert batch.loss_weights is not None
        assert batch.labels.shape == batch.loss_weights.shape == (1, batch.slots)
        assert batch.labels.dtype == torch.int64 and batch.loss_weights.dtype == torch.float32
        assert int(batch.labels.min()) >= 0
        assert not batch.labels[batch.loss_weights == 0].any()
        assert int((batch.loss_weights > 0).sum()) == batch.trained_tokens


def test_one_neat_pack() -> None:
    files = columns_of(
        [([11, 12, 13, 21, 22, 31, P, P], [1, 1, 1, 2, 2, 3, 0, 0], [-100, 12, 13, -100, 22, 31, -100, -100])]
    )
    (batch,) = builder_of(dataset_of(files), global_batch_size=1).micro_batches(0)
    check_shapes(batch)
    assert batch.tokens is not None and batch.labels is not None and batch.loss_weights is not None
    assert batch.tokens.tolist() == [[11, 12, 13, 21, 22, 31, 0, 0]]
    assert batch.labels.tolist() == [[12, 13, 0, 22, 0, 0, 0, 0]]
    assert batch.loss_weights.tolist() == [[1, 1, 0, 1, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 1]
    assert batch.actual_seq_len == (3, 5, 6, 8)
    assert (batch.tokens_count, batch.slots, batch.samples, batch.trained_tokens) == (6, 8, 3, 3)
    assert batch.loss_denominator == 3
    assert batch.sample_ids == (("data/alpaca", 0),)


def test_positions_run_on_with_reset_attention_mask_alone() -> None:
    builder = builder_of(
        dataset_of(neat_files(4)), micro_batch_size=2, reset_position_ids=False, reset_attention_mask=True
    )
    for batch in builder.micro_batches(0):
        assert batch.positions.tolist() == [*range(S), *range(S)]
        assert len(batch.actual_seq_len) > 2


@pytest.mark.parametrize("normalization", ["token", "sample"])
def test_micro_batch_size_changes_nothing(normalization: str) -> None:
    # Defect: tokens flattened sequence-first, boundaries batch-first.
    dataset = dataset_of(neat_files(9))
    contents = []
    for size in (1, 2, 4):
        batches = list(builder_of(dataset, micro_batch_size=size, normalization=normalization).micro_batches(4))
        for batch in batches:
            check_shapes(batch)
        contents.append((joined(batches), sum(batch.loss_denominator or 0 for batch in batches)))
    assert contents[0] == contents[1] == contents[2]


def test_a_sample_keeps_its_tokens_in_a_stream_of_several_packs() -> None:
    files = neat_files(8)
    (batch,) = builder_of(dataset_of(files), micro_batch_size=4).micro_batches(0)
    assert batch.tokens is not None
    stream, starts = batch.tokens[0].tolist(), [0, *batch.actual_seq_len[:-1]]
    segments = {tuple(stream[first:last]) for first, last in zip(starts, batch.actual_seq_len, strict=True)}
    for _, number in batch.sample_ids:
        ids, mask = files.input_ids.documents[number], files.attention_mask.documents[number]
        assert all(tuple(ids[mask == sample].tolist()) in segments for sample in range(1, mask.max() + 1))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_a_global_batch_is_the_same_packs_on_every_layout(shuffle: bool, size: int) -> None:
    dataset = dataset_of(neat_files(11))
    whole = joined(list(builder_of(dataset, shuffle, global_batch_size=8).micro_batches(16)))["ids"]
    for replicas in (1, 2, 4):
        parts: dict[int, list[Any]] = {}
        for rank in range(replicas):
            builder = builder_of(
                dataset,
                shuffle,
                global_batch_size=8,
                micro_batch_size=size,
                data_parallel_rank=rank,
                data_parallel_size=replicas,
            )
            assert builder.sample_ids(16) == whole
            for m, batch in enumerate(builder.micro_batches(16)):
                parts[m * replicas + rank] = list(batch.sample_ids)
        assert [name for turn in sorted(parts) for name in parts[turn]] == whole


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_with_the_same_packs() -> None:
    dataset = dataset_of(neat_files(11))
    through = [builder.sample_ids(at) for builder in [builder_of(dataset)] for at in range(0, 40, 4)]
    resumed = [builder_of(dataset).sample_ids(at) for at in range(20, 40, 4)]  # 20 is inside the second epoch of 11
    assert resumed == through[5:]


def test_a_middle_stage_reads_the_attention_mask_alone() -> None:
    files = neat_files(4)
    builder = builder_of(dataset_of(files), needs_tokens=False, needs_labels=False)
    full = list(builder_of(dataset_of(neat_files(4))).micro_batches(0))
    for batch, other in zip(builder.micro_batches(0), full, strict=True):
        check_shapes(batch)
        assert batch.tokens is batch.labels is batch.loss_weights is batch.loss_denominator is None
        assert batch.actual_seq_len == other.actual_seq_len
        assert batch.positions.equal(other.positions)
        assert (batch.tokens_count, batch.samples) == (other.tokens_count, other.samples)
    assert files.input_ids.read == files.labels.read == [] and len(files.attention_mask.read) == 4


def test_the_ends_of_the_pipeline_read_what_they_need() -> None:
    files = neat_files(4)
    (first, *_) = builder_of(dataset_of(files), needs_labels=False).micro_batches(0)
    assert first.tokens is not None and first.labels is None and files.labels.read == []
    files = neat_files(4)
    (last, *_) = builder_of(dataset_of(files), needs_tokens=False).micro_batches(0)
    assert last.tokens is None and last.labels is not None and files.input_ids.read == []


PLAIN = [([5, 6, E, 7, 8, E, P, P], [1] * 8, [-100, 6, E, -100, 8, E, -100, -100])]


def test_plain_packs_are_separated_at_end_tokens_on_every_stage() -> None:
    for needs in (True, False):
        builder = builder_of(
            dataset_of(columns_of(PLAIN), neat=False),
            global_batch_size=1,
            eod=E,
            pad=P,
            needs_tokens=needs,
            needs_labels=needs,
        )
        (batch,) = builder.micro_batches(0)
        check_shapes(batch)
        assert batch.actual_seq_len == (3, 6, 8)
        assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
        assert (batch.tokens_count, batch.samples) == (6, 2)
        assert batch.labels is None or batch.labels.tolist() == [[6, E, 0, 8, E, 0, 0, 0]]


def test_a_plain_pack_without_reset_is_one_causal_sequence() -> None:
    builder = builder_of(
        dataset_of(columns_of(PLAIN), neat=False), global_batch_size=1, eod=E, pad=P, reset_position_ids=False
    )
    (batch,) = builder.micro_batches(0)
    assert batch.actual_seq_len == (6, 8) and batch.samples == 1
    assert batch.positions.tolist() == list(range(8))


def test_end_tokens_inside_a_neat_sample_do_not_cut_it() -> None:
    # Defect: under qwen the system, user and answer parts of one sample were cut from each other.
    files = columns_of([([5, E, 6, E, 7, 8, E, P], [1, 1, 1, 1, 2, 2, 2, 0], [-100, -100, 6, E, -100, 8, E, -100])])
    (batch,) = builder_of(dataset_of(files), global_batch_size=1, eod=E, pad=P).micro_batches(0)
    assert batch.actual_seq_len == (4, 7, 8)


def test_labels_on_padding_are_not_trained() -> None:
    files = columns_of([([5, 6, P, P, P, P, P, P], [1, 1, 0, 0, 0, 0, 0, 0], [-100, 6, 9, 9, 9, 9, 9, 9])])
    (batch,) = builder_of(dataset_of(files), global_batch_size=1).micro_batches(0)
    assert batch.trained_tokens == 1


UNPACKED = [([5, 6, E], [1] * 3, [-100, 6, E]), ([7, 8, 9, 10, E], [1] * 5, [-100, -100, 9, 10, E])]


@pytest.mark.parametrize(("variable", "multiple", "width"), [(False, 1, 8), (True, 1, 5), (True, 2, 6), (True, 16, 8)])
def test_unpacked_samples_are_padded(variable: bool, multiple: int, width: int) -> None:
    builder = builder_of(
        dataset_of(columns_of(UNPACKED), packed=False, neat=False),
        shuffle=False,
        global_batch_size=2,
        micro_batch_size=2,
        pad=P,
        variable_seq_lengths=variable,
        multiple=multiple,
    )
    (batch,) = builder.micro_batches(0)
    check_shapes(batch)
    assert batch.tokens is not None and batch.labels is not None
    ends = [3, width, width + 5] + ([2 * width] if width > 5 else [])
    assert batch.actual_seq_len == tuple(ends)
    tokens, labels = batch.tokens.view(2, width).tolist(), batch.labels.view(2, width).tolist()
    assert tokens == [[5, 6, E] + [P] * (width - 3), [7, 8, 9, 10, E] + [P] * (width - 5)]
    assert labels == [[6, E] + [0] * (width - 2), [0, 9, 10, E] + [0] * (width - 4)]
    assert (batch.tokens_count, batch.samples, batch.trained_tokens) == (8, 2, 5)


def test_a_sample_longer_than_seq_length_is_named() -> None:
    files = columns_of([*UNPACKED, ([5] * 9, [1] * 9, [5] * 9)])
    builder = builder_of(dataset_of(files, packed=False, neat=False), global_batch_size=1, pad=P)
    with pytest.raises(DataError, match=r"sample 2 of data/alpaca has 9 slots, --seq-length is 8"):
        builder.batch_of(np.array([2]))


def test_damaged_packs_are_named() -> None:
    good = neat_files(3)
    good.attention_mask.documents[1][:] = [1, 1, 3, 3, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"pack 1 of data/alpaca: attention_mask is not that of a neat pack"):
        builder_of(dataset_of(good)).batch_of(np.array([1]))
    with pytest.raises(DataError, match=r"pack 0 of data/alpaca: input_ids hold .* outside the vocabulary of 11"):
        builder_of(dataset_of(neat_files(1)), vocabulary=11).batch_of(np.array([0]))


def test_what_cannot_be_batched_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="--tokenizer-name-or-path"):
        builder_of(dataset_of(columns_of(PLAIN), neat=False), pad=P)
    with pytest.raises(ConfigError, match="padding token"):
        builder_of(dataset_of(columns_of(UNPACKED), packed=False, neat=False))


def test_moving_a_batch_leaves_the_boundaries_on_the_host() -> None:
    (batch, *_) = builder_of(dataset_of(neat_files(4))).micro_batches(0)
    moved = batch.to("meta")
    assert moved.tokens is not None and moved.tokens.device.type == moved.positions.device.type == "meta"
    assert moved.actual_seq_len is batch.actual_seq_len
    middle = replace(batch, tokens=None, labels=None, loss_weights=None).to("meta")
    assert middle.tokens is middle.labels is None


# prefetching


def test_prefetching_keeps_the_order_and_is_one_ahead() -> None:
    begun: list[int] = []
    finished = threading.Event()

    def prepare(start: int) -> int:
        begun.append(start)
        if start == 8:
            finished.set()
        return start * 10

    seen = []
    for value in prefetch(prepare, range(0, 20, 4)):
        seen.append(value)
        if value == 40:
            assert finished.wait(HANG_SECONDS), "the next one is not prepared while this one is used"
            assert begun == [0, 4, 8]
    assert seen == [0, 40, 80, 120, 160]
    assert list(prefetch(prepare, [])) == []


def test_an_error_comes_where_its_batch_would() -> None:
    def prepare(start: int) -> int:
        if start == 2:
            raise DataError("pack 2 is damaged")
        return start

    batches: Iterator[int] = prefetch(prepare, range(5))
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(DataError, match="pack 2"):
        next(batches)


@pytest.mark.parametrize("normalization", ["token", "sample", "micro-batch"])
def test_a_run_may_end_inside_a_batch(normalization: Any) -> None:
    """Two packs are left of four: what every rank adds up is what those two give, over as many micro-batches."""
    dataset = dataset_of(neat_files(8))
    order = dataset.order(seed=7)

    def batches(end: int | None) -> list[MicroBatch]:
        found = []
        for rank in range(2):
            values = {"seq_length": S, "micro_batch_size": 1, "global_batch_size": 4, "normalization": normalization}
            settings = DataLoaderSettings(**values, data_parallel_rank=rank, data_parallel_size=2)
            found += list(PackedDataLoader(dataset, order, settings, end).micro_batches(4))
        return found

    short, full = batches(6), batches(None)
    assert len(short) == len(full) == 4
    left = [batch for batch in short if batch.sample_ids]
    assert [batch.sample_ids for batch in left] == [(dataset.sample_id(int(p)),) for p in order.positions(4, 2)]
    for batch in short:
        if not batch.sample_ids:
            assert (batch.loss_denominator, batch.trained_tokens, batch.tokens_count, batch.samples) == (0, 0, 0, 0)
            assert batch.loss_weights is not None and not batch.loss_weights.any() and batch.slots == S
    same = [batch for batch in full if batch.sample_ids in [other.sample_ids for other in left]]
    assert [batch.loss_denominator for batch in left] == [batch.loss_denominator for batch in same]
