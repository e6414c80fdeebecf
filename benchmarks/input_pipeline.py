#!/usr/bin/env python
"""Benchmark the input pipeline: time to build a micro-batch, and how long training steps wait for data.

    python benchmarks/input_pipeline.py

1. One pack of 32,768 slots with 500 samples: time to build its micro-batch (boundaries, shifted labels, positions, loss
   weights). Goal: under 3 ms.
2. Steps of a model like that of the quickstart, with prefetching of the next batch as in training: the share of time
   that steps wait for their batch. Goal: under 1 %.

The packs contain random tokens and are written to a temporary directory. The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from mindspeed_llm.data import (
    DataLoaderSettings,
    DatasetShare,
    PackedDataLoader,
    PackedDataset,
    TokenDataLoader,
    prefetch,
)
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.manifest import COLUMNS, column_prefix

VOCABULARY = 4096
GOAL_MS, GOAL_SHARE = 3.0, 0.01


def packed_dataset(folder: Path, slots: int, samples: int, packs: int) -> PackedDataset:
    """Write neat packs of random samples and open them as a dataset."""
    prefix = folder / f"s{slots}"
    draw = np.random.default_rng(0)
    writers = {name: IndexedWriter(column_prefix(prefix, name)) for name in COLUMNS}
    for _ in range(packs):
        cuts = np.sort(draw.choice(np.arange(1, slots), samples - 1, replace=False))
        mask = np.repeat(np.arange(1, samples + 1), np.diff(np.concatenate(([0], cuts, [slots])))).astype(np.int32)
        ids = draw.integers(0, VOCABULARY, slots).astype(np.int32)
        labels = np.where(draw.random(slots) < 0.4, ids, -100).astype(np.int32)
        for name, array in (("input_ids", ids), ("attention_mask", mask), ("labels", labels)):
            writers[name].add(array)
    for writer in writers.values():
        writer.finish()
    return PackedDataset([DatasetShare(PackedFiles.open(prefix), np.arange(packs))])


def make_dataloader(dataset: PackedDataset, slots: int, batch: int) -> PackedDataLoader:
    settings = DataLoaderSettings(seq_length=slots, micro_batch_size=1, global_batch_size=batch, vocabulary=VOCABULARY)
    return PackedDataLoader(dataset, dataset.order(seed=1), settings)


def micro_batch_milliseconds(folder: Path, rounds: int) -> float:
    """Return the median milliseconds to build a micro-batch of one pack of 32,768 slots with 500 samples."""
    dataloader = make_dataloader(packed_dataset(folder, 32_768, 500, 8), 32_768, 1)
    times = []
    for position in range(rounds):
        start = time.perf_counter()
        list(dataloader.micro_batches(position))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def waiting_share(
    dataloader: TokenDataLoader, steps: int, kind: str = "--is-instruction-dataset --neat-pack"
) -> tuple[float, float]:
    """Train `steps` steps; return the share of time spent waiting for batches and the median seconds of a step.

    The first step is not counted, because no batch has been prefetched when it starts.

    Args:
        dataloader: source of the batches: 4 packs or blocks of 1,024 slots each.
        steps: number of steps.
        kind: flags that say what the data are.
    """
    import torch

    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
    from mindspeed_llm.devices import apply_patches, select_device

    # Patches must be applied before the first import of megatron-core below.
    apply_patches("cpu")
    from mindspeed_llm.training import destroy_process_groups, init_distributed
    from mindspeed_llm.training.derived_settings import derive_settings
    from mindspeed_llm.training.learning_rate_schedule import RunLength
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.train_step import train_step

    shape = (
        "--num-layers 4 --hidden-size 192 --ffn-hidden-size 512 --num-attention-heads 6 --group-query-attention "
        "--num-query-groups 2 --disable-bias-linear --add-qkv-bias --swiglu --seq-length 1024 --no-save-model "
        "--micro-batch-size 1 "
        f"--global-batch-size 4 --lr 1e-3 --train-iters {steps} --data-path none {kind} "
        f"--reset-position-ids --vocab-size {VOCABULARY} --device cpu --eval-iters 0 --split 100,0,0"
    )
    arguments = parse_pretrain_arguments(shape.split(), 1)
    device = select_device("cpu")
    init_distributed(arguments, device)
    derived = derive_settings(arguments, "cpu", arguments.vocabulary(VOCABULARY), RunLength(steps, 0))
    model_and_optimizer = setup_model_and_optimizer(arguments, device, derived)
    batches = prefetch(lambda start: list(dataloader.micro_batches(start)), range(0, 4 * steps, 4))
    wait_seconds, step_seconds = [], []
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        received = time.perf_counter()
        train_step(model_and_optimizer, batch, torch.device("cpu"))
        wait_seconds.append(received - start)
        step_seconds.append(time.perf_counter() - received)
    destroy_process_groups()
    return sum(wait_seconds[1:]) / sum(wait_seconds[1:] + step_seconds[1:]), statistics.median(step_seconds[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="number of packs of 32,768 slots to build")
    parser.add_argument("--steps", type=int, default=20, help="number of training steps")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the files have no manifest
    with tempfile.TemporaryDirectory() as folder:
        milliseconds = micro_batch_milliseconds(Path(folder), arguments.rounds)
        dataloader = make_dataloader(packed_dataset(Path(folder), 1024, 12, 64), 1024, 4)
        share, seconds = waiting_share(dataloader, arguments.steps)
    print(f"pack of 32,768 slots with 500 samples   {milliseconds:.2f} ms   (goal: under {GOAL_MS:g} ms)")
    step = f"of a step of {seconds:.2f} s"
    print(f"waiting for data                        {share:.3%} {step}   (goal: under {GOAL_SHARE:.0%})")
    return 0 if milliseconds < GOAL_MS and share < GOAL_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
