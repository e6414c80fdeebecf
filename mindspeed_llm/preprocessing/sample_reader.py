"""From input files to tokens on disk: batches of rows, some being tokenised while the next is read."""

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

# Of a batch: enough that what each costs by itself does not count, few enough that no worker waits long for the last.
ROWS_AT_ONCE = 500
CHARACTERS_AT_ONCE = 120_000
BATCHES_AHEAD = 2  # read and waiting for a worker


def read_samples(
    arguments: PreprocessArguments, parts: PreprocessingInputs, builder: SampleBuilder, taker: OutcomeWriter
) -> None:
    """All rows, in their order, to `taker`.

    Raises:
        DataError: a damaged file, or what `taker` does not allow; with file and line, the first of all.
    """

    def work(batch: RowBatch) -> BatchOutcome:
        return make_outcome(batch, builder.build(batch.sound))

    position = ReadPosition()
    batches = row_batches(read_all_rows(arguments, parts, position), parts.handler, position)
    with contextlib.closing(map_in_order(work, batches, arguments.run.workers)) as outcomes:
        for outcome in outcomes:
            taker.take(outcome)


def map_in_order(
    work: Callable[[RowBatch], BatchOutcome], batches: Iterable[RowBatch], workers: int
) -> Generator[BatchOutcome, None, None]:
    """`work` of each of `batches`, in their order, some of them worked on at a time in threads.

    Raises:
        DataError: of `batches`, after the outcomes of those before.
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


def read_all_rows(arguments: PreprocessArguments, parts: PreprocessingInputs, position: ReadPosition) -> Iterator[Row]:
    """All rows of all data sets, mixed as the command line says."""
    given = arguments.input
    shares = None if given.interleave_probs is None else parse_probabilities(given.interleave_probs)
    return interleave_rows(
        parts.sources, given.mix_strategy, shares, arguments.output.seed, given.max_samples, position
    )


def row_batches(rows: Iterable[Row], handler: Handler, position: ReadPosition) -> Iterator[RowBatch]:
    """`rows` with what `handler` makes of them, in batches that fit into memory."""
    batch, characters = RowBatch(), 0
    for row in rows:
        found: Conversation | str
        try:
            found = handler.conversation(row.value) if row.problem is None else row.problem
        except InvalidRowError as reason:
            found = str(reason)
        except RecursionError:  # of what is not JSON text: columns of a parquet file that are nested that deep
            found = TOO_DEEP
        if handler.unread:
            batch.unread.setdefault(row.file, set()).update(handler.pop_unread_fields())
        if isinstance(found, Conversation):
            characters += sum(len(turn.prompt) + len(turn.answer) for turn in found.turns)
        batch.rows.append(row)
        batch.conversations.append(found)
        if len(batch.rows) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            batch.bytes_read = position.bytes_read
            yield batch
            batch, characters = RowBatch(), 0
    if batch.rows:
        batch.bytes_read = position.bytes_read
        yield batch
