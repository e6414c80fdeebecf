#!/usr/bin/env python
"""Benchmark document files for pretraining: opening time and memory against the number of documents, and reading.

    python benchmarks/documents.py

1. Sets of 10,000 to 10 million documents without a manifest: seconds to open and split them (--split 969,30,1), and the
   memory that this takes at its peak, each in a process of its own, without imports and hashing. Goals for 10 million:
   under 10 s of processor time, and under 100 MB plus 8 bytes per 1,024 documents.
2. Milliseconds to build a micro-batch of one block of 4,096 tokens at a random position of the largest set.
3. Steps of a model like that of the quickstart on blocks of 1,024 tokens, with prefetching of the next batch as in
   training: the share of time that steps wait for their batch. Goal: under 1 %.

The files are written to a temporary directory; the tokens of the large sets are zeros in a sparse file. The exit status
is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from input_pipeline import VOCABULARY, waiting_share

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.data import BlockDataLoader, BlockDataset, DataLoaderSettings, build_datasets
from mindspeed_llm.indexed_dataset import IndexedWriter
from mindspeed_llm.indexed_dataset.idx_header import sequence_pointers, write_idx_header
from mindspeed_llm.manifest import document_prefix

COUNTS = (10_000, 100_000, 1_000_000, 10_000_000)
GOAL_SECONDS, GOAL_BYTES, GOAL_SHARE = 10.0, 100e6, 0.01
MEAN_LENGTH = 60
EOD = 0  # every document of zeros ends with it


def write_index(prefix: Path, count: int) -> str:
    """Write `count` documents of 1 to 2 · MEAN_LENGTH tokens, all of them 0 in a sparse .bin file."""
    lengths = np.random.default_rng(0).integers(1, 2 * MEAN_LENGTH, count).astype(np.int32)
    dtype, path = np.dtype(np.uint16), document_prefix(prefix, "text")
    with Path(f"{path}.idx").open("wb") as index:
        index.write(write_idx_header(dtype, count))
        for numbers in (lengths, sequence_pointers(lengths, dtype.itemsize), np.arange(count + 1, dtype=np.int64)):
            index.write(numbers.tobytes())
    with Path(f"{path}.bin").open("wb") as file:
        file.truncate(dtype.itemsize * int(lengths.sum(dtype=np.int64)))
    return str(path)


def arguments_for(path: str, seq_length: int) -> DataArguments:
    return DataArguments(seq_length=seq_length, data_path=[path], split="969,30,1", eod_id=EOD, reset_position_ids=True)


def opened(path: str, seq_length: int) -> BlockDataset:
    dataset = build_datasets(arguments_for(path, seq_length), seed=1, evaluate=False).train
    assert isinstance(dataset, BlockDataset)
    return dataset


def measure_opening(path: str) -> None:
    """Open a set and print seconds and bytes; run in a process of its own."""
    import torch  # noqa: F401 - its memory is that of an import

    before, start, own_start = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
    dataset = opened(path, 4096)
    seconds, own_seconds = time.perf_counter() - start, time.process_time() - own_start
    read_milliseconds(dataset, 100)
    print(seconds, own_seconds, memory_bytes("VmHWM") - before)


def memory_bytes(field: str) -> int:
    """Return memory of this process, current (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def read_milliseconds(dataset: BlockDataset, rounds: int) -> float:
    """Return the median milliseconds to build a micro-batch of one block at a random position."""
    settings = DataLoaderSettings(seq_length=4096, micro_batch_size=1, global_batch_size=1, vocabulary=VOCABULARY)
    dataloader = BlockDataLoader(dataset, dataset.order(seed=1), settings)
    times = []
    for position in range(min(rounds, len(dataset))):
        start = time.perf_counter()
        list(dataloader.micro_batches(position))
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def write_tokens(prefix: Path) -> str:
    """Write documents of random tokens for the training steps."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 600, 2_000).astype(np.int32)
    tokens = draw.integers(1, VOCABULARY, int(lengths.sum()))
    path = document_prefix(prefix, "text")
    with IndexedWriter(path, np.uint16) as out:
        out.add_sequences(tokens, lengths)
    return str(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of documents")
    parser.add_argument("--steps", type=int, default=20, help="number of training steps")
    parser.add_argument("--opened", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # the files have no manifest
    if arguments.opened is not None:
        measure_opening(arguments.opened)
        return 0
    met = True
    with tempfile.TemporaryDirectory() as folder:
        for count in arguments.counts:
            path = write_index(Path(folder) / str(count), count)
            command = [sys.executable, __file__, "--opened", path]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, own_seconds, used = map(float, done.stdout.split())
            limit = GOAL_BYTES + 8 * count / 1024
            met = met and own_seconds < GOAL_SECONDS and used < limit
            print(
                f"{count:>12,} documents   opened in {seconds:.2f} s, {own_seconds:.2f} s of the processor   "
                f"{used / 1e6:.1f} MB (goal: {limit / 1e6:.1f})"
            )
        milliseconds = read_milliseconds(opened(path, 4096), 500)
        print(f"a block of 4,096 tokens at a random position of them   {milliseconds:.2f} ms")
        dataset = opened(write_tokens(Path(folder) / "tokens"), 1024)
        settings = DataLoaderSettings(1024, 1, 4, vocabulary=VOCABULARY)
        dataloader = BlockDataLoader(dataset, dataset.order(seed=1), settings)
        share, seconds = waiting_share(dataloader, arguments.steps, "")
    print(f"waiting for data   {share:.3%} of a step of {seconds:.2f} s   (goal: under {GOAL_SHARE:.0%})")
    return 0 if met and share < GOAL_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
