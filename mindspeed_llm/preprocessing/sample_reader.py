"""Read the rows of all input files, and convert them into conversations in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments, parse_probabilities
from mindspeed_llm.chat import Conversation, Handler, InvalidRowError
from mindspeed_llm.preprocessing.batch_outcome import RowBatch
from mindspeed_llm.preprocessing.inputs import PreprocessingInputs
from mindspeed_llm.rawdata import TOO_DEEP, ReadPosition, Row, interleave_rows

# Limits of a batch: large enough that the overhead per batch does not count, small enough for the processor's caches.
ROWS_AT_ONCE = 500
CHARACTERS_AT_ONCE = 120_000


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
