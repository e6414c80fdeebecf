"""The project's own contestants of training.py: one model, the same samples, laid out in four ways.

Every contestant is the path of pretrain_gpt.py on one rank: packed files, BatchBuilder, megatron-core's model,
optimizer and schedule through training.step. They differ in their batches, (b) in its attention kernel too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.attention.dense_attention import dense_mask
from mindspeed_llm.data import DataLoaderSettings, DatasetShare, MicroBatch, PackedDataLoader, PackedDataset
from mindspeed_llm.devices import select_device
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.indexed_dataset.packed_files import COLUMNS, column_prefix
from mindspeed_llm.packing import plan_packs

VOCABULARY, LAYERS, HIDDEN, FFN, HEADS, GROUPS = 8192, 4, 256, 1376, 4, 2
ROTARY_BASE, NORM_EPSILON, LEARNING_RATE, WEIGHT_DECAY = 1_000_000, 1e-6, 1e-4, 0.01
PAD = 0
ROWS = 4  # samples of a padded batch


def alpaca_like(count: int) -> np.ndarray:
    """Lengths of instruction samples, skewed, about 100 tokens on average; int64 [count]."""
    drawn = np.random.default_rng(0).lognormal(np.log(100) - 0.32, 0.8, count)
    return np.clip(np.rint(drawn), 8, 4096).astype(np.int64)


@dataclass(frozen=True)
class Samples:
    """What is trained: pack p holds samples starts[p] … starts[p + 1] − 1.

    Attributes:
        lengths: tokens of each sample, in the order of the packs.
        starts: where each pack begins; the last is the number of samples.
        seq_length: slots of a pack.
    """

    lengths: np.ndarray
    starts: np.ndarray
    seq_length: int

    @classmethod
    def planned(cls, lengths: np.ndarray, seq_length: int) -> Samples:
        """Packed as preprocess_data.py packs, without the last pack, for which too little may be left over."""
        packs = list(plan_packs(lengths, seq_length, seed=1))
        del packs[min(range(len(packs)), key=lambda number: int(lengths[packs[number]].sum()))]
        starts = np.cumsum([0, *(len(pack) for pack in packs)])
        return cls(lengths[np.concatenate(packs)], starts, seq_length)

    def of_pack(self, pack: int) -> np.ndarray:
        """Numbers of its samples."""
        return np.arange(self.starts[pack], self.starts[pack + 1])

    def content(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """ids and labels of every sample: random tokens, of which the last six in ten are trained."""
        draw = np.random.default_rng(1)
        for length in self.lengths:
            ids = draw.integers(1, VOCABULARY, length).astype(np.int32)
            yield ids, np.where(np.arange(length) < int(0.4 * length), -100, ids).astype(np.int32)


def write(folder: Path, samples: Samples) -> tuple[PackedDataset, PackedDataset]:
    """The packs, and the same samples one by one, as packed files on the disk."""
    content = list(samples.content())
    packs: list[tuple[np.ndarray, ...]] = []
    for pack in range(len(samples.starts) - 1):
        row = [np.full(samples.seq_length, fill, np.int32) for fill in (PAD, 0, -100)]
        at = 0
        for number, sample in enumerate(samples.of_pack(pack), 1):
            ids, labels = content[sample]
            for array, values in zip(row, (ids, number, labels), strict=True):
                array[at : at + len(ids)] = values
            at += len(ids)
        packs.append(tuple(row))
    singles = [(ids, np.ones(len(ids), np.int32), labels) for ids, labels in content]
    return _dataset(folder / "packs", packs, packed=True), _dataset(folder / "samples", singles, packed=False)


def _dataset(prefix: Path, rows: Sequence[tuple[np.ndarray, ...]], packed: bool) -> PackedDataset:
    for position, name in enumerate(COLUMNS):
        with IndexedWriter(column_prefix(prefix, name)) as out:
            for row in rows:
                out.add(row[position])
    component = DatasetShare(PackedFiles.open(prefix), np.arange(len(rows), dtype=np.int64))
    return PackedDataset([component], packed=packed, neat=packed)


class DenseMaskAttention:
    """What is done where packs have no kernel: scaled_dot_product_attention with the T × T mask of the pack."""

    name: ClassVar[str] = "dense mask"

    def __init__(self) -> None:
        self._mask = BoundaryCache(dense_mask)  # once for a micro-batch, as all else

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: tuple[int, ...], scale: float
    ) -> torch.Tensor:
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask(ends, query.device), scale=scale, enable_gqa=True
        )
        return output.squeeze(0).transpose(0, 1)


def arguments_of(seq_length: int) -> PretrainArguments:
    """The command line of all contestants."""
    words = (
        f"--num-layers {LAYERS} --hidden-size {HIDDEN} --ffn-hidden-size {FFN} --num-attention-heads {HEADS} "
        f"--group-query-attention --num-query-groups {GROUPS} --disable-bias-linear --add-qkv-bias --swiglu "
        f"--normalization RMSNorm --norm-epsilon {NORM_EPSILON} --rotary-base {ROTARY_BASE} --vocab-size {VOCABULARY} "
        f"--make-vocab-size-divisible-by 1 --untie-embeddings-and-output-weights --seq-length {seq_length} "
        f"--position-embedding-type rope --micro-batch-size 1 --global-batch-size 1 --lr {LEARNING_RATE} "
        f"--weight-decay {WEIGHT_DECAY} --train-iters 100000 --data-path none --split 100,0,0 --eval-iters 0 "
        "--is-instruction-dataset --neat-pack --reset-position-ids --device cpu"
    )
    return parse_pretrain_arguments(words.split(), 1)


class Done(NamedTuple):
    """What one step took and did."""

    seconds: float
    tokens: int
    slots: int
    loss: float
    grad_norm: float


class Trainer:
    """One contestant: a model and optimizer of its own, the same at the start for all.

    Args:
        samples: what is trained; step number n trains those of pack n.
        batches: from the number of a step to its micro-batches.
        dense: attend with the dense mask.
    """

    clock: Callable[[], float] = time.perf_counter

    def __init__(self, samples: Samples, batches: Callable[[int], list[MicroBatch]], dense: bool = False) -> None:
        from mindspeed_llm.model.core_attention import PackedAttention
        from mindspeed_llm.training.derived_settings import derive_settings
        from mindspeed_llm.training.learning_rate_schedule import RunLength
        from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
        from mindspeed_llm.training.process_groups import seed_ranks

        arguments = arguments_of(samples.seq_length)
        seed_ranks(arguments.training.seed)
        derived = derive_settings(arguments, "cpu", arguments.vocabulary(VOCABULARY), RunLength(100_000, 0))
        self.model_and_optimizer = setup_model_and_optimizer(arguments, select_device("cpu"), derived)
        self.batches, self.steps, self.packs = batches, 0, len(samples.starts) - 1
        if dense:
            kernel = DenseMaskAttention()
            for module in self.model_and_optimizer.chunks[0].modules():
                if isinstance(module, PackedAttention):
                    module.kernel = kernel  # type: ignore[assignment]

    def step(self) -> Done:
        """The next step: its batches are built, trained on, and the schedule moves, as in the loop of a run."""
        from mindspeed_llm.training.train_step import train_step

        began = Trainer.clock()
        with torch.profiler.record_function("step"):
            with torch.profiler.record_function("data"):
                batches = self.batches(self.steps % self.packs)
            result = train_step(self.model_and_optimizer, batches, torch.device("cpu"))
            self.model_and_optimizer.scheduler.step(1)
        seconds = Trainer.clock() - began
        self.steps += 1
        totals = result.totals
        return Done(seconds, int(totals.tokens), int(totals.slots), totals.mean_loss, result.grad_norm)

    def rates(self) -> tuple[float, float]:
        """The next step: useful tokens and slots a second."""
        done = self.step()
        return done.tokens / done.seconds, done.slots / done.seconds


def _builder(dataset: PackedDataset, samples: Samples, variable: bool = False) -> PackedDataLoader:
    settings = DataLoaderSettings(
        samples.seq_length, 1, 1, pad=PAD, vocabulary=VOCABULARY, variable_seq_lengths=variable, multiple=1
    )
    return PackedDataLoader(dataset, dataset.order(seed=1, shuffle=False), settings)


def contestants(folder: Path, samples: Samples, names: str = "abcd") -> dict[str, Trainer]:
    """(a) to (d), as many as are wanted; see training.py."""
    packs, singles = write(folder, samples)
    whole, padded = _builder(packs, samples), _builder(singles, samples)
    grouped = _builder(singles, samples, variable=True)

    def packed(step: int) -> list[MicroBatch]:
        return [whole.batch_of(np.array([step]))]

    def one_a_row(step: int) -> list[MicroBatch]:
        return [padded.batch_of(np.array([sample])) for sample in samples.of_pack(step)]

    def by_length(step: int) -> list[MicroBatch]:
        """Rising lengths in rows of four, as --length-grouped has them inside a global batch."""
        rising = samples.of_pack(step)[np.argsort(samples.lengths[samples.of_pack(step)], kind="stable")]
        return [grouped.batch_of(rising[at : at + ROWS]) for at in range(0, len(rising), ROWS)]

    ways = {"a": packed, "b": packed, "c": one_a_row, "d": by_length}
    return {name: Trainer(samples, ways[name], dense=name == "b") for name in names}
