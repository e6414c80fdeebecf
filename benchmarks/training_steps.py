"""The training methods of this project in training.py: the same model and samples with four batch layouts.

Each method uses the code path of pretrain_gpt.py on one rank: packed files, PackedDataLoader, and the model, optimizer
and schedule of megatron-core with train_step. The methods differ in their batches; (b) also uses another attention
kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from mindspeed_llm.arguments.bounds import AUTO
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.attention.dense_attention import dense_mask
from mindspeed_llm.data import DataLoaderSettings, DatasetShare, MicroBatch, PackedDataLoader, PackedDataset
from mindspeed_llm.devices import select_device
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.manifest import COLUMNS, column_prefix
from mindspeed_llm.packing import plan_packs

VOCABULARY, LAYERS, HIDDEN, FFN, HEADS, GROUPS = 8192, 4, 256, 1376, 4, 2
ROTARY_BASE, NORM_EPSILON, LEARNING_RATE, WEIGHT_DECAY = 1_000_000, 1e-6, 1e-4, 0.01
PAD = 0
ROWS = 4  # samples per padded batch
# A larger model for LoRA: with hidden size 256, the products of rank 16 are an eighth of those of the base.
LARGER = {"VOCABULARY": 32768, "LAYERS": 8, "HIDDEN": 512, "FFN": 1536, "HEADS": 8, "GROUPS": 2}
LORA_RANK, LORA_ALPHA = 16, 32


def set_shape(shape: Mapping[str, int]) -> None:
    """Set VOCABULARY, LAYERS, HIDDEN, FFN, HEADS and GROUPS for all methods created later."""
    globals().update(shape)


def current_shape() -> dict[str, int]:
    """Return the values that `set_shape` sets."""
    return {name: globals()[name] for name in LARGER}


def alpaca_like(count: int) -> np.ndarray:
    """Draw skewed lengths of instruction samples with a mean of about 100 tokens; int64 [count]."""
    drawn = np.random.default_rng(0).lognormal(np.log(100) - 0.32, 0.8, count)
    return np.clip(np.rint(drawn), 8, 4096).astype(np.int64)


@dataclass(frozen=True)
class Samples:
    """The training samples; pack p contains the samples starts[p] … starts[p + 1] − 1.

    Attributes:
        lengths: tokens of each sample in the order of the packs, int64 [samples].
        starts: index of the first sample of each pack, followed by the number of samples, int64 [packs + 1].
        seq_length: slots per pack.
    """

    lengths: np.ndarray
    starts: np.ndarray
    seq_length: int

    @classmethod
    def planned(cls, lengths: np.ndarray, seq_length: int) -> Samples:
        """Pack samples as preprocess_data.py does, without the emptiest pack."""
        packs = list(plan_packs(lengths, seq_length, seed=1))
        # The emptiest pack contains the remaining samples and may be mostly padding, which would distort the figures.
        del packs[min(range(len(packs)), key=lambda number: int(lengths[packs[number]].sum()))]
        starts = np.cumsum([0, *(len(pack) for pack in packs)])
        return cls(lengths[np.concatenate(packs)], starts, seq_length)

    def of_pack(self, pack: int) -> np.ndarray:
        """Return the indices of the samples of a pack."""
        return np.arange(self.starts[pack], self.starts[pack + 1])

    def content(self) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and labels of every sample: random tokens, of which the last 60 % are trained; int32 [length]."""
        draw = np.random.default_rng(1)
        for length in self.lengths:
            ids = draw.integers(1, VOCABULARY, length).astype(np.int32)
            yield ids, np.where(np.arange(length) < int(0.4 * length), -100, ids).astype(np.int32)


def write(folder: Path, samples: Samples) -> tuple[PackedDataset, PackedDataset]:
    """Write the packs, and the same samples one per document, as packed files, and open both data sets."""
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
    """Attention without a packed kernel: scaled_dot_product_attention with the [T, T] mask of the pack."""

    name: ClassVar[str] = "dense mask"

    def __init__(self) -> None:
        self._mask = BoundaryCache(dense_mask)  # built once per micro-batch, like the boundaries of the other kernels

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: tuple[int, ...], scale: float
    ) -> torch.Tensor:
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._mask(ends, query.device), scale=scale, enable_gqa=True
        )
        return output.squeeze(0).transpose(0, 1)


def arguments_of(seq_length: int, lora: bool = False) -> PretrainArguments:
    """Return the arguments of all methods; with `lora`, those of LoRA on all linear layers."""
    command_line = (
        f"--num-layers {LAYERS} --hidden-size {HIDDEN} --ffn-hidden-size {FFN} --num-attention-heads {HEADS} "
        f"--group-query-attention --num-query-groups {GROUPS} --disable-bias-linear --add-qkv-bias --swiglu "
        f"--normalization RMSNorm --norm-epsilon {NORM_EPSILON} --rotary-base {ROTARY_BASE} --vocab-size {VOCABULARY} "
        f"--make-vocab-size-divisible-by 1 --untie-embeddings-and-output-weights --seq-length {seq_length} "
        f"--position-embedding-type rope --no-save-model "
        f"--micro-batch-size 1 --global-batch-size 1 --lr {LEARNING_RATE} "
        f"--weight-decay {WEIGHT_DECAY} --train-iters 100000 --data-path none --split 100,0,0 --eval-iters 0 "
        "--is-instruction-dataset --neat-pack --reset-position-ids --device cpu"
    )
    if lora:
        command_line += f" --lora-target-modules all-linear --lora-r {LORA_RANK} --lora-alpha {LORA_ALPHA}"
    return parse_pretrain_arguments(command_line.split(), 1)


class StepResult(NamedTuple):
    """Time and result of one step."""

    seconds: float
    tokens: int
    slots: int
    loss: float
    grad_norm: float


class Trainer:
    """One training method with its own model and optimizer; the initial weights are the same for all methods.

    Args:
        samples: the training samples; step n trains those of pack n.
        batches: returns the micro-batches of a step number.
        dense: whether to use attention with a dense mask.
        loss_chunk_size: --loss-chunk-size.
        lora: whether to train a LoRA adapter instead of all weights.
    """

    clock: Callable[[], float] = time.perf_counter

    def __init__(
        self,
        samples: Samples,
        batches: Callable[[int], list[MicroBatch]],
        dense: bool = False,
        loss_chunk_size: int = AUTO,
        lora: bool = False,
    ) -> None:
        from mindspeed_llm.model.core_attention import PackedAttention
        from mindspeed_llm.training.derived_settings import derive_settings
        from mindspeed_llm.training.learning_rate_schedule import RunLength
        from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
        from mindspeed_llm.training.process_groups import seed_ranks

        arguments = arguments_of(samples.seq_length, lora)
        arguments.training.loss_chunk_size = loss_chunk_size
        seed_ranks(arguments.training.seed)
        derived = derive_settings(arguments, "cpu", arguments.vocabulary(VOCABULARY), RunLength(100_000, 0))
        self.model_and_optimizer = setup_model_and_optimizer(arguments, select_device("cpu"), derived)
        self.batches, self.steps, self.packs = batches, 0, len(samples.starts) - 1
        if dense:
            kernel = DenseMaskAttention()
            for module in self.model_and_optimizer.chunks[0].modules():
                if isinstance(module, PackedAttention):
                    module.kernel = kernel  # type: ignore[assignment]

    def step(self) -> StepResult:
        """Run the next step as the training loop does: build its batches, train on them, advance the schedule."""
        from mindspeed_llm.training.train_step import train_step

        start = Trainer.clock()
        with torch.profiler.record_function("step"):
            with torch.profiler.record_function("data"):
                batches = self.batches(self.steps % self.packs)
            result = train_step(self.model_and_optimizer, batches, torch.device("cpu"))
            self.model_and_optimizer.scheduler.step(1)
        seconds = Trainer.clock() - start
        self.steps += 1
        totals = result.totals
        return StepResult(seconds, int(totals.tokens), int(totals.slots), totals.mean_loss, result.grad_norm)

    def rates(self) -> tuple[float, float]:
        """Run the next step; return useful tokens and slots per second."""
        result = self.step()
        return result.tokens / result.seconds, result.slots / result.seconds


def _dataloader(dataset: PackedDataset, samples: Samples, variable: bool = False) -> PackedDataLoader:
    settings = DataLoaderSettings(
        samples.seq_length, 1, 1, pad=PAD, vocabulary=VOCABULARY, variable_seq_lengths=variable, multiple=1
    )
    return PackedDataLoader(dataset, dataset.order(seed=1, shuffle=False), settings)


def training_methods(
    folder: Path, samples: Samples, names: str = "abcd", loss_chunk_size: int = AUTO, lora: bool = False
) -> dict[str, Trainer]:
    """Create the methods (a) to (d) named by the letters in `names`, with LoRA if `lora`; see training.py."""
    packs, singles = write(folder, samples)
    full, padded = _dataloader(packs, samples), _dataloader(singles, samples)
    grouped = _dataloader(singles, samples, variable=True)

    def packed(step: int) -> list[MicroBatch]:
        return [full.batch_of(np.array([step]))]

    def one_per_row(step: int) -> list[MicroBatch]:
        return [padded.batch_of(np.array([sample])) for sample in samples.of_pack(step)]

    def by_length(step: int) -> list[MicroBatch]:
        """Return batches of four rows by increasing length, as --length-grouped arranges them in a global batch."""
        ascending = samples.of_pack(step)[np.argsort(samples.lengths[samples.of_pack(step)], kind="stable")]
        return [grouped.batch_of(ascending[at : at + ROWS]) for at in range(0, len(ascending), ROWS)]

    batches = {"a": packed, "b": packed, "c": one_per_row, "d": by_length}
    return {name: Trainer(samples, batches[name], name == "b", loss_chunk_size, lora) for name in names}
