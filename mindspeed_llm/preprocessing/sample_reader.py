"""Read input files and tokenise their rows: batches are tokenised in threads while the next ones are read."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments, parse_probabilities
from mindspeed_llm.chat import Conversation, Handler, InvalidRowError
from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing.batch_outcome import BatchOutcome, OutcomeWriter, RowBatch, make_outcome
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.rawdata import TOO_DEEP, ReadPosition, Row, interleave_rows
from mindspeed_llm.tokenization import SampleBuilder

# Limits of a batch: large enough that the overhead per batch does not count, small enough that no worker waits long for
# the last one.
ROWS_AT_ONCE = 500
CHARACTERS_AT_ONCE = 120_000
BATCHES_AHEAD = 2  # batches that are read and wait for a worker


def read_samples(
    arguments: PreprocessArguments, inputs: PreprocessingInputs, builder: SampleBuilder, outcome_writer: OutcomeWriter
) -> None:
    """Read and tokenise all rows, and pass the outcomes to `outcome_writer` in the order of the rows.

    Args:
        arguments: the command line.
        inputs: files, handler, template and tokenizer.
        builder: makes samples of conversations.
        outcome_writer: receives the outcomes.

    Raises:
        DataError: the first error in the order of the rows: a damaged file, or a row that `outcome_writer` refuses. The
            message names file and line.
    """

    def work(batch: RowBatch) -> BatchOutcome:
        return make_outcome(batch, builder.build(batch.sound))

    position = ReadPosition()
    batches = row_batches(read_all_rows(arguments, inputs, position), inputs.handler, position)
    with contextlib.closing(map_in_order(work, batches, arguments.run.workers)) as outcomes:
        for outcome in outcomes:
            outcome_writer.write(outcome)


def map_in_order(
    work: Callable[[RowBatch], BatchOutcome], batches: Iterable[RowBatch], workers: int
) -> Generator[BatchOutcome, None, None]:
    """Apply `work` to batches in threads, and yield the results in the order of the batches.

    Args:
        work: called with one batch, in any of the threads.
        batches: the batches, read in the calling thread.
        workers: number of threads.

    Raises:
        DataError: reading the batches failed; raised after the results of all batches before.
    """
    waiting: deque[Future[BatchOutcome]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokens")
    failure: DataError | None = None
    try:
        try:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                while waiting and (len(waiting) >= workers + BATCHES_AHEAD or waiting[0].done()):
                    yield waiting.popleft().result()
        except DataError as error:
            failure = error
        while waiting:
            yield waiting.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def read_all_rows(arguments: PreprocessArguments, inputs: PreprocessingInputs, position: ReadPosition) -> Iterator[Row]:
    """Yield all rows of all data sets, mixed according to --mix-strategy."""
    given = arguments.input
    shares = None if given.interleave_probs is None else parse_probabilities(given.interleave_probs)
    return interleave_rows(
        inputs.sources, given.mix_strategy, shares, arguments.output.seed, given.max_samples, position
    )


def row_batches(rows: Iterable[Row], handler: Handler, position: ReadPosition) -> Iterator[RowBatch]:
    """Group rows into batches of limited size, and convert each row into a conversation.

    Args:
        rows: the rows.
        handler: converts a row into a conversation.
        position: position in the input after the last row that was read.
    """
    batch, characters = RowBatch(), 0
    for row in rows:
        converted: Conversation | str
        try:
            converted = handler.conversation(row.value) if row.problem is None else row.problem
        except InvalidRowError as reason:
            converted = str(reason)
        # The depth of JSON text is checked when it is parsed; the columns of a parquet file can be nested as deeply.
        except RecursionError:
            converted = TOO_DEEP
        if handler.unread:
            batch.unread.setdefault(row.file, set()).update(handler.pop_unread_fields())
        if isinstance(converted, Conversation):
            characters += sum(len(turn.prompt) + len(turn.answer) for turn in converted.turns)
        batch.rows.append(row)
        batch.conversations.append(converted)
        if len(batch.rows) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            batch.bytes_read = position.bytes_read
            yield batch
            batch, characters = RowBatch(), 0
    if batch.rows:
        batch.bytes_read = position.bytes_read
        yield batch
