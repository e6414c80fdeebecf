"""Read and tokenise in tasks of a Ray cluster (`--executor ray`), one task per block of the input.

    block 0 ──▶ task ──▶ tokens ─┐
    block 1 ──▶ task ──▶ tokens ─┼─▶ written by this process in the order of the blocks ─▶ one plan
    block 2 ──▶ task ──▶ tokens ─┘

A task depends on its block only, so Ray runs it again if its worker dies. Blocks are parts of files. Every node must
have the files and the tokenizer under the same paths. If a large file cannot be split into blocks, or data sets are
mixed row by row, this process reads the rows, and the tasks only tokenise them.
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

ROWS_AT_ONCE = 1000  # rows per task of files that cannot be split
BLOCKS_IN_FLIGHT = 2  # per CPU of the cluster; more would fill the object store with results that wait to be written


@dataclass(frozen=True)
class RowBlock:
    """Rows that this process has read, to be tokenised by a task."""

    rows: list[Row]


@dataclass(frozen=True)
class BlockResult:
    """Result of one block.

    Attributes:
        outcomes: outcomes of its batches, in order, up to the failure if there is one.
        unseen: columns of --map-keys that the worker has not seen in any row so far.
        failure: message of the UserError that ended the task; None if it succeeded.
    """

    outcomes: list[BatchOutcome]
    unseen: set[str]
    failure: str | None


def read_samples_on_ray(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, outcome_writer: OutcomeWriter
) -> None:
    """Read and tokenise all rows on a Ray cluster; the result is that of `read_samples`.

    Raises:
        ConfigError: ray is not installed, or the cluster cannot be reached.
        DataError: see `read_samples`; or the workers of a block died repeatedly.
    """
    ray = _connected(arguments)
    try:
        task = ray.remote(num_cpus=1, max_retries=3)(tokenise_block)
        command = json.dumps(dataclasses.asdict(arguments))
        limit = BLOCKS_IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[tuple[FileBlock | RowBlock, int, Any]] = deque()
        checked = _Checked(inputs, outcome_writer)

        def take() -> None:
            block, bytes_read, result = waiting.popleft()
            checked.take(block, bytes_read, _result_of(ray, block, result))

        for block, bytes_read in _blocks(arguments, inputs):
            waiting.append((block, bytes_read, task.remote(command, inputs.tokenizer.sha256, block)))
            if len(waiting) >= limit:
                take()
        while waiting:
            take()
        inputs.handler.unseen &= checked.unseen
    finally:
        ray.shutdown()


class _Checked:
    """Write the results of blocks, with the checks that need more than one block."""

    def __init__(self, inputs: PreprocessingInputs, outcome_writer: OutcomeWriter) -> None:
        self.unseen = set(inputs.handler.unseen)
        self._outcome_writer = outcome_writer
        self._rows_of_file = 0

    def take(self, block: FileBlock | RowBlock, bytes_read: int, result_of_block: BlockResult) -> None:
        for outcome in result_of_block.outcomes:
            outcome.bytes_read = bytes_read
            self._outcome_writer.write(outcome)
        if result_of_block.failure is not None:
            raise DataError(result_of_block.failure)
        self.unseen &= result_of_block.unseen
        if isinstance(block, RowBlock):
            return
        rows = sum(outcome.rows_read for outcome in result_of_block.outcomes)
        self._rows_of_file = rows if block.first == 1 else self._rows_of_file + rows
        if block.bytes_read == block.file.size and self._rows_of_file == 0:
            raise DataError(
                f"{block.file.path}: no row in the file; check that it was written or downloaded completely"
            )


def _connected(arguments: PreprocessArguments) -> Any:
    """Import ray, connect to a cluster, and return the module."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else ray sends usage statistics
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


def _blocks(arguments: PreprocessArguments, inputs: PreprocessingInputs) -> Iterator[tuple[FileBlock | RowBlock, int]]:
    """Yield all rows in the order of a local run, each block with the number of input bytes up to its end."""
    given = arguments.input
    if given.max_samples is not None or (len(inputs.sources) > 1 and given.mix_strategy != "concat"):
        position = ReadPosition()
        yield from _row_blocks(read_all_rows(arguments, inputs, position), position)
        return
    before = 0
    for file in inputs.files:
        if file.size > file_blocks.BLOCK_BYTES and not file_blocks.is_splittable(file):
            position = ReadPosition(before)
            yield from _row_blocks(read_rows([file], position), position)
        else:
            yield from ((block, before + block.bytes_read) for block in split_into_blocks(file))
        before += file.size


def _row_blocks(rows: Iterator[Row], position: ReadPosition) -> Iterator[tuple[RowBlock, int]]:
    while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield RowBlock(some), position.bytes_read


def _result_of(ray: Any, block: FileBlock | RowBlock, result: Any) -> BlockResult:
    died = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    try:
        tokenised: BlockResult = ray.get(result)
        return tokenised
    except died as error:
        where = (
            f"{block.file.path}:{block.first}"
            if isinstance(block, FileBlock)
            else f"{block.rows[0].file}:{block.rows[0].line}"
        )
        raise DataError(
            f"{where}: every worker died that processed the block which begins here ({type(error).__name__}); "
            "look into the logs of Ray, and give its nodes more memory if they ran out of it"
        ) from error


def tokenise_block(command: str, tokenizer: str, block: FileBlock | RowBlock) -> BlockResult:
    """Tokenise the rows of one block; this is the task that runs on the cluster.

    Args:
        command: the arguments, as JSON.
        tokenizer: SHA-256 of the tokenizer of the main process.
        block: a part of a file, or rows.

    Returns:
        the outcomes; an error of the user is returned in it, not raised.
    """
    outcomes: list[BatchOutcome] = []
    unseen: set[str] = set()
    failure = None
    try:
        arguments, inputs = _worker_inputs(command)
        if inputs.tokenizer.sha256 != tokenizer:
            raise DataError(
                "--executor ray: a node has a different tokenizer under this path; copy the same one to every node"
            )
        builder = inputs.builder(arguments)
        rows: Iterator[Row] | Sequence[Row] = block.rows if isinstance(block, RowBlock) else read_block(block)
        batches = row_batches(rows, inputs.handler, ReadPosition())
        outcomes.extend(
            make_outcome(batch, builder.build(batch.sound)) for batch in batches
        )  # the outcomes before a failure remain
        unseen = set(inputs.handler.unseen)
    except UserError as error:
        failure = str(error)
    return BlockResult(outcomes, unseen, failure)


@functools.lru_cache(maxsize=1)
def _worker_inputs(command: str) -> tuple[PreprocessArguments, PreprocessingInputs]:
    """Return arguments and inputs of a worker; cached, because a worker processes one block after another."""
    names = [field.name for field in dataclasses.fields(PreprocessArguments)]
    groups = {
        name: group(**values) for name, group, values in zip(names, GROUPS, json.loads(command).values(), strict=True)
    }
    arguments = PreprocessArguments(**groups)
    arguments.run.workers = 1  # Ray gives a task one CPU
    return arguments, load_inputs(arguments)
