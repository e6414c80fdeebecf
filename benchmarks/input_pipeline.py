#!/usr/bin/env python
"""How long training waits for data: packs → micro-batches, alone and beside the steps of the quickstart's model.

    python benchmarks/input_pipeline.py

1. One pack of 32,768 slots with 500 samples: time to build its micro-batch (boundaries, shifted labels, positions, loss
   weights). Goal: under 3 ms.
2. Steps of a model like the quickstart's, with the next batch prepared meanwhile, as training does it: the share of the
   time that a step waits for its batch. Goal: under 1 %.

Packs hold random tokens, in files in a temporary folder. Exit status 1 if a goal is missed.
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

from mindspeed_llm.data import DataLoaderSettings, DatasetShare, PackedDataLoader, PackedDataset, prefetch
from mindspeed_llm.indexed_dataset import PackedFiles
from mindspeed_llm.indexed_dataset.indexed_writer import IndexedWriter
from mindspeed_llm.indexed_dataset.packed_files import COLUMNS, column_prefix

VOCABULARY = 4096
GOAL_MS, GOAL_SHARE = 3.0, 0.01


def packed_dataset(folder: Path, slots: int, samples: int, packs: int) -> PackedDataset:
    """Neat packs of random samples, written and opened again."""
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


def builder_of(dataset: PackedDataset, slots: int, batch: int) -> PackedDataLoader:
    settings = DataLoaderSettings(seq_length=slots, micro_batch_size=1, global_batch_size=batch, vocabulary=VOCABULARY)
    return PackedDataLoader(dataset, dataset.order(seed=1), settings)


def time_of_a_pack(folder: Path, rounds: int) -> float:
    """Milliseconds (median) for a micro-batch of one pack of 32,768 slots with 500 samples."""
    builder = builder_of(packed_dataset(folder, 32_768, 500, 8), 32_768, 1)
    times = []
    for position in range(rounds):
        began = time.perf_counter()
        list(builder.micro_batches(position))
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def waiting_share(folder: Path, steps: int) -> tuple[float, float]:
    """(share of the time that steps wait for their batch, seconds of a step), the first step left out."""
    import torch

    from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
    from mindspeed_llm.devices import apply_patches, select_device

    apply_patches("cpu")
    from mindspeed_llm.training import destroy_process_groups, init_distributed
    from mindspeed_llm.training.derived_settings import derive_settings
    from mindspeed_llm.training.learning_rate_schedule import RunLength
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
    from mindspeed_llm.training.train_step import train_step

    shape = (
        "--num-layers 4 --hidden-size 192 --ffn-hidden-size 512 --num-attention-heads 6 --group-query-attention "
        "--num-query-groups 2 --disable-bias-linear --add-qkv-bias --swiglu --seq-length 1024 --micro-batch-size 1 "
        f"--global-batch-size 4 --lr 1e-3 --train-iters {steps} --data-path none --is-instruction-dataset --neat-pack "
        f"--reset-position-ids --vocab-size {VOCABULARY} --device cpu --eval-iters 0 --split 100,0,0"
    )
    arguments = parse_pretrain_arguments(shape.split(), 1)
    device = select_device("cpu")
    init_distributed(arguments, device)
    derived = derive_settings(arguments, "cpu", arguments.vocabulary(VOCABULARY), RunLength(steps, 0))
    model_and_optimizer = setup_model_and_optimizer(arguments, device, derived)
    builder = builder_of(packed_dataset(folder, 1024, 12, 64), 1024, 4)
    batches = prefetch(lambda start: list(builder.micro_batches(start)), range(0, 4 * steps, 4))
    waited, worked = [], []
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        got = time.perf_counter()
        train_step(model_and_optimizer, batch, torch.device("cpu"))
        waited.append(got - began)
        worked.append(time.perf_counter() - got)
    destroy_process_groups()
    return sum(waited[1:]) / sum(waited[1:] + worked[1:]), statistics.median(worked[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="packs of 32,768 slots to build")
    parser.add_argument("--steps", type=int, default=20, help="steps of the model")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the files have no manifest
    with tempfile.TemporaryDirectory() as folder:
        milliseconds = time_of_a_pack(Path(folder), arguments.rounds)
        share, seconds = waiting_share(Path(folder), arguments.steps)
    print(f"pack of 32,768 slots with 500 samples   {milliseconds:.2f} ms   (goal: under {GOAL_MS:g} ms)")
    step = f"of a step of {seconds:.2f} s"
    print(f"waiting for data                        {share:.3%} {step}   (goal: under {GOAL_SHARE:.0%})")
    return 0 if milliseconds < GOAL_MS and share < GOAL_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
