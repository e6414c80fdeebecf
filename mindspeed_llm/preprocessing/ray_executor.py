"""`--executor ray`: reading and tokenising as tasks of a Ray cluster, each on a block of the input.

    block 0 ──▶ task ──▶ shard of tokens ─┐
    block 1 ──▶ task ──▶ shard of tokens ─┼─▶ put away here in the order of the blocks ─▶ one plan
    block 2 ──▶ task ──▶ shard of tokens ─┘

A task is a function of its block alone, so one whose worker died is simply run again, by Ray. Blocks are parts of
files, which every node must see under the same path, as it must the tokenizer. Where rows cannot be found from the
middle of a large file, or data sets are mixed row by row, the rows are read here and only tokenised there.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import GROUPS, PreprocessArguments
from mindspeed_llm.errors import ConfigError, DataError, UserError
from mindspeed_llm.preprocessing.batch_outcome import BatchOutcome, OutcomeWriter, make_outcome
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs, load_inputs
from mindspeed_llm.preprocessing.sample_reader import read_all_rows, row_batches
from mindspeed_llm.rawdata import FileBlock, ReadPosition, Row, file_blocks, read_block, read_rows, split_into_blocks

ROWS_AT_ONCE = 1000  # of files that cannot be divided
BLOCKS_IN_FLIGHT = 2  # for each CPU of the cluster: results wait in the object store for their turn


@dataclass(frozen=True)
class RowBlock:
    """Rows that were read here."""

    rows: list[Row]


@dataclass(frozen=True)
class BlockResult:
    """What came out of one block.

    Attributes:
        outcomes: of its batches, in order; up to the failure, if there is one.
        unseen: columns of --map-keys that the worker has not seen in any row so far.
        failure: what a UserError said, None if there was none.
    """

    outcomes: list[BatchOutcome]
    unseen: set[str]
    failure: str | None


def read_samples_on_ray(arguments: PreprocessArguments, parts: PreprocessingInputs, taker: OutcomeWriter) -> None:
    """As `read_samples`: all rows, in their order, to `taker`.

    Raises:
        ConfigError: ray is not installed, or there is no such cluster.
        DataError: as `read_samples`, or a block at which workers die again and again.
    """
    ray = _connected(arguments)
    try:
        task = ray.remote(num_cpus=1, max_retries=3)(tokenise_block)
        command = json.dumps(dataclasses.asdict(arguments))
        most = BLOCKS_IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[tuple[FileBlock | RowBlock, int, Any]] = deque()
        checked = _Checked(parts, taker)

        def take() -> None:
            block, bytes_read, result = waiting.popleft()
            checked.take(block, bytes_read, _shard(ray, block, result))

        for block, bytes_read in _blocks(arguments, parts):
            waiting.append((block, bytes_read, task.remote(command, parts.tokenizer.sha256, block)))
            if len(waiting) >= most:
                take()
        while waiting:
            take()
        parts.handler.unseen &= checked.unseen
    finally:
        ray.shutdown()


class _Checked:
    """Puts shards away, with the checks for which one block knows too little."""

    def __init__(self, parts: PreprocessingInputs, taker: OutcomeWriter) -> None:
        self.unseen = set(parts.handler.unseen)
        self._taker = taker
        self._rows_of_file = 0

    def take(self, block: FileBlock | RowBlock, bytes_read: int, shard: BlockResult) -> None:
        for outcome in shard.outcomes:
            outcome.bytes_read = bytes_read
            self._taker.take(outcome)
        if shard.failure is not None:
            raise DataError(shard.failure)
        self.unseen &= shard.unseen
        if isinstance(block, RowBlock):
            return
        rows = sum(outcome.rows_read for outcome in shard.outcomes)
        self._rows_of_file = rows if block.first == 1 else self._rows_of_file + rows
        if block.bytes_read == block.file.size and self._rows_of_file == 0:
            raise DataError(
                f"{block.file.path}: no row in the file; check that it was written or downloaded completely"
            )


def _connected(arguments: PreprocessArguments) -> Any:
    """The module ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report over the network
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray: the package ray is not installed; pip install 'mindspeed_llm[ray]', or leave the flag out"
        ) from error
    address = arguments.run.ray_address
    try:
        if address is None:
            ray.init(
                num_cpus=arguments.run.workers, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        where = "a cluster on this machine" if address is None else f"--ray-address {address}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"--executor ray: {where} cannot be reached ({reason}); start one with 'ray start --head', "
            "or leave --ray-address out"
        ) from error
    return ray


def _blocks(arguments: PreprocessArguments, parts: PreprocessingInputs) -> Iterator[tuple[FileBlock | RowBlock, int]]:
    """All rows, in the order of the local run, each block with the bytes of the input up to its end."""
    given = arguments.input
    if given.max_samples is not None or (len(parts.sources) > 1 and given.mix_strategy != "concat"):
        position = ReadPosition()
        yield from _row_blocks(read_all_rows(arguments, parts, position), position)
        return
    before = 0
    for file in parts.files:
        if file.size > file_blocks.BLOCK_BYTES and not file_blocks.is_splittable(file):
            position = ReadPosition(before)
            yield from _row_blocks(read_rows([file], position), position)
        else:
            yield from ((block, before + block.bytes_read) for block in split_into_blocks(file))
        before += file.size


def _row_blocks(rows: Iterator[Row], position: ReadPosition) -> Iterator[tuple[RowBlock, int]]:
    while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield RowBlock(some), position.bytes_read


def _shard(ray: Any, block: FileBlock | RowBlock, result: Any) -> BlockResult:
    died = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    try:
        shard: BlockResult = ray.get(result)
        return shard
    except died as error:
        where = (
            f"{block.file.path}:{block.first}"
            if isinstance(block, FileBlock)
            else f"{block.rows[0].file}:{block.rows[0].line}"
        )
        raise DataError(
            f"{where}: every worker that took the block that begins here died ({type(error).__name__}); "
            "look into Ray's logs, and give its nodes more memory if that is what they lacked"
        ) from error


def tokenise_block(command: str, tokenizer: str, block: FileBlock | RowBlock) -> BlockResult:
    """The task: what comes out of the rows of `block`.

    Args:
        command: the arguments, as JSON.
        tokenizer: SHA-256 of the tokenizer that is meant.
    """
    outcomes: list[BatchOutcome] = []
    unseen: set[str] = set()
    failure = None
    try:
        arguments, parts = _worker_parts(command)
        if parts.tokenizer.sha256 != tokenizer:
            raise DataError("--executor ray: a node has another tokenizer under this path; copy the same to every node")
        builder = parts.builder(arguments)
        rows: Iterator[Row] | Sequence[Row] = block.rows if isinstance(block, RowBlock) else read_block(block)
        batches = row_batches(rows, parts.handler, ReadPosition())
        outcomes.extend(make_outcome(batch, builder.build(batch.sound)) for batch in batches)  # kept up to a failure
        unseen = set(parts.handler.unseen)
    except UserError as error:
        failure = str(error)
    return BlockResult(outcomes, unseen, failure)


@functools.lru_cache(maxsize=1)
def _worker_parts(command: str) -> tuple[PreprocessArguments, PreprocessingInputs]:
    """Arguments and parts in a worker, which takes one block after the other."""
    names = [field.name for field in dataclasses.fields(PreprocessArguments)]
    groups = {
        name: group(**values) for name, group, values in zip(names, GROUPS, json.loads(command).values(), strict=True)
    }
    arguments = PreprocessArguments(**groups)
    arguments.run.workers = 1  # Ray gives a task one CPU
    return arguments, load_inputs(arguments)
