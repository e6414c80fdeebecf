"""From input files to tokens on disk: batches of rows, some being tokenised while the next is read."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments, probabilities_of
from mindspeed_llm.chat import BadRow, Conversation, Handler
from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing.batch_outcome import Outcome, RowBatch, Taker, outcome_of
from mindspeed_llm.preprocessing.inputs import Parts
from mindspeed_llm.rawdata import TOO_DEEP, Position, Row, mixed_rows
from mindspeed_llm.tokenization import SampleBuilder

# Of a batch: enough that what each costs by itself does not count, few enough that no worker waits long for the last.
ROWS_AT_ONCE = 500
CHARACTERS_AT_ONCE = 120_000
BATCHES_AHEAD = 2  # read and waiting for a worker


def read_samples(arguments: PreprocessArguments, parts: Parts, builder: SampleBuilder, taker: Taker) -> None:
    """All rows, in their order, to `taker`.

    Raises:
        DataError: a damaged file, or what `taker` does not allow; with file and line, the first of all.
    """

    def work(batch: RowBatch) -> Outcome:
        return outcome_of(batch, builder.build(batch.sound))

    position = Position()
    batches = row_batches(rows_of(arguments, parts, position), parts.handler, position)
    with contextlib.closing(in_order(work, batches, arguments.run.workers)) as outcomes:
        for outcome in outcomes:
            taker.take(outcome)


def in_order(
    work: Callable[[RowBatch], Outcome], batches: Iterable[RowBatch], workers: int
) -> Generator[Outcome, None, None]:
    """`work` of each of `batches`, in their order, some of them worked on at a time in threads.

    Raises:
        DataError: of `batches`, after the outcomes of those before.
    """
    waiting: deque[Future[Outcome]] = deque()
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


def rows_of(arguments: PreprocessArguments, parts: Parts, position: Position) -> Iterator[Row]:
    """All rows of all data sets, mixed as the command line says."""
    given = arguments.input
    shares = None if given.interleave_probs is None else probabilities_of(given.interleave_probs)
    return mixed_rows(parts.sources, given.mix_strategy, shares, arguments.output.seed, given.max_samples, position)


def row_batches(rows: Iterable[Row], handler: Handler, position: Position) -> Iterator[RowBatch]:
    """`rows` with what `handler` makes of them, in batches that fit into memory."""
    batch, characters = RowBatch(), 0
    for row in rows:
        found: Conversation | str
        try:
            found = handler.conversation(row.value) if row.problem is None else row.problem
        except BadRow as reason:
            found = str(reason)
        except RecursionError:  # of what is not JSON text: columns of a parquet file that are nested that deep
            found = TOO_DEEP
        if handler.unread:
            batch.unread.setdefault(row.file, set()).update(handler.take_unread())
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
