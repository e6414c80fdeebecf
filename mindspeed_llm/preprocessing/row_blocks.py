"""Divide the input into blocks of rows that processes tokenise independently, and write their results in order.

    block 0 ──▶ worker ──▶ tokens ─┐
    block 1 ──▶ worker ──▶ tokens ─┼─▶ written by the main process in the order of the blocks ─▶ one plan
    block 2 ──▶ worker ──▶ tokens ─┘

A worker is a process of this machine (local_executor.py) or of a Ray cluster (ray_executor.py). It reads a part of a
file itself. If a large file cannot be split, or data sets are mixed row by row, the main process reads the rows, and
the workers only tokenise them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import GROUPS, PreprocessArguments
from mindspeed_llm.errors import DataError, UserError
from mindspeed_llm.preprocessing.batch_outcome import BatchOutcome, OutcomeWriter, tokenise_batch
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs, load_inputs
from mindspeed_llm.preprocessing.sample_reader import read_all_rows, row_batches
from mindspeed_llm.rawdata import FileBlock, ReadPosition, Row, is_splittable, read_block, read_rows, split_into_blocks
from mindspeed_llm.tokenization import SampleBuilder

ROWS_AT_ONCE = 1000  # maximum number of rows in a block of rows


@dataclass(frozen=True)
class RowBlock:
    """Rows that the main process has read.

    Attributes:
        rows: file, line, value and problem of each Row. A tuple is pickled in a third of the time.
    """

    rows: list[tuple[str, int, Any, str | None]]

    @property
    def where(self) -> str:
        """File and line of the first row."""
        return f"{self.rows[0][0]}:{self.rows[0][1]}"


Block = FileBlock | RowBlock


@dataclass(frozen=True)
class BlockResult:
    """Result of one block.

    Attributes:
        outcomes: outcomes of its batches, in order, up to the failure if there is one.
        unseen: columns of --map-keys that the worker has not seen in any row so far.
        failure: message of the UserError that ended the work on the block; None if it succeeded.
    """

    outcomes: list[BatchOutcome]
    unseen: set[str]
    failure: str | None


def input_blocks(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, block_bytes: int
) -> Iterator[tuple[Block, int]]:
    """Yield all rows in blocks, in order, each block with the number of input bytes up to its end.

    Args:
        arguments: the command line.
        inputs: files, handler, template and tokenizer.
        block_bytes: approximate size of a block.
    """
    given = arguments.input
    if given.max_samples is not None or (len(inputs.sources) > 1 and given.mix_strategy != "concat"):
        position = ReadPosition()
        yield from _row_blocks(read_all_rows(arguments, inputs, position), position, block_bytes)
        return
    before = 0
    for file in inputs.files:
        if file.size > block_bytes and not is_splittable(file):
            position = ReadPosition(before)
            yield from _row_blocks(read_rows([file], position), position, block_bytes)
        else:
            yield from ((block, before + block.bytes_read) for block in split_into_blocks(file, block_bytes))
        before += file.size


def _row_blocks(rows: Iterator[Row], position: ReadPosition, block_bytes: int) -> Iterator[tuple[RowBlock, int]]:
    """Group rows into blocks; rows that have been read before an error come before it."""
    some: list[tuple[str, int, Any, str | None]] = []
    start = position.bytes_read
    try:
        for row in rows:
            some.append((row.file, row.line, row.value, row.problem))
            if len(some) == ROWS_AT_ONCE or position.bytes_read - start >= block_bytes:
                yield RowBlock(some), position.bytes_read
                some, start = [], position.bytes_read
    except DataError:
        if some:
            yield RowBlock(some), position.bytes_read
        raise
    if some:
        yield RowBlock(some), position.bytes_read


def write_in_order(
    blocks: Iterable[tuple[Block, int]],
    submit: Callable[[Block], Callable[[], BlockResult]],
    limit: int,
    inputs: PreprocessingInputs,
    outcome_writer: OutcomeWriter,
) -> None:
    """Let workers tokenise blocks, and write their outcomes in the order of the blocks.

    Args:
        blocks: the blocks, see `input_blocks`.
        submit: gives a block to a worker; the result is a function that waits for the block's result.
        limit: maximum number of blocks that wait for a worker or to be written.
        inputs: files, handler, template and tokenizer.
        outcome_writer: receives the outcomes.

    Raises:
        DataError: the first error in the order of the rows.
    """
    unseen = set(inputs.handler.unseen)
    rows_of_file = 0
    for block, bytes_read, result in _results_in_order(blocks, submit, limit):
        for outcome in result.outcomes:
            outcome.bytes_read = bytes_read
            outcome_writer.write(outcome)
        if result.failure is not None:
            raise DataError(result.failure)
        unseen &= result.unseen
        if isinstance(block, FileBlock):
            rows = sum(outcome.rows_read for outcome in result.outcomes)
            rows_of_file = rows if block.first == 1 else rows_of_file + rows
            # The reader of a complete file checks this itself; that of a part cannot.
            if block.bytes_read == block.file.size and rows_of_file == 0:
                raise DataError(
                    f"{block.file.path}: no row in the file; check that it was written or downloaded completely"
                )
    inputs.handler.unseen &= unseen


def _results_in_order(
    blocks: Iterable[tuple[Block, int]], submit: Callable[[Block], Callable[[], BlockResult]], limit: int
) -> Generator[tuple[Block, int, BlockResult], None, None]:
    """Yield each block with its position and result; an error of reading follows the results before it."""
    waiting: deque[tuple[Block, int, Callable[[], BlockResult]]] = deque()
    failure: DataError | None = None
    try:
        for block, bytes_read in blocks:
            waiting.append((block, bytes_read, submit(block)))
            if len(waiting) >= limit:
                block, bytes_read, wait = waiting.popleft()
                yield block, bytes_read, wait()
    except DataError as error:
        failure = error
    while waiting:
        block, bytes_read, wait = waiting.popleft()
        yield block, bytes_read, wait()
    if failure is not None:
        raise failure


# Command line → what a worker needs; a worker processes one block after another.
_prepared: dict[str, tuple[PreprocessingInputs, SampleBuilder]] = {}


def command_of(arguments: PreprocessArguments) -> str:
    """Return the arguments as JSON, from which a worker loads its inputs."""
    return json.dumps(dataclasses.asdict(arguments))


def prepare_worker(command: str, inputs: PreprocessingInputs, builder: SampleBuilder) -> None:
    """Keep the inputs of a command for workers that are forked from this process."""
    _prepared[command] = inputs, builder


def tokenise_block(command: str, tokenizer: str, block: Block) -> BlockResult:
    """Tokenise the rows of one block, in a worker.

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
        if command not in _prepared:
            arguments = parse_command(command)
            inputs = load_inputs(arguments)
            _prepared[command] = inputs, inputs.builder(arguments)
        inputs, builder = _prepared[command]
        if inputs.tokenizer.sha256 != tokenizer:
            raise DataError(
                "--executor ray: a node has a different tokenizer under this path; copy the same one to every node"
            )
        rows = itertools.starmap(Row, block.rows) if isinstance(block, RowBlock) else read_block(block)
        batches = row_batches(rows, inputs.handler, ReadPosition())
        outcomes.extend(tokenise_batch(batch, builder) for batch in batches)  # those before a failure remain
        unseen = set(inputs.handler.unseen)
    except UserError as error:
        failure = str(error)
    return BlockResult(outcomes, unseen, failure)


def parse_command(command: str) -> PreprocessArguments:
    """Return the arguments that `command_of` has written.

    Args:
        command: the arguments, as JSON.
    """
    names = [field.name for field in dataclasses.fields(PreprocessArguments)]
    values = json.loads(command).values()
    return PreprocessArguments(
        **{name: group(**value) for name, group, value in zip(names, GROUPS, values, strict=True)}
    )
