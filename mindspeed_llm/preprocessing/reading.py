"""From input files to tokens on disk: batches of rows, one being tokenised while the next is read."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from mindspeed_llm.arguments.preprocess import PreprocessArguments, probabilities_of
from mindspeed_llm.chat import BadRow, Conversation, Handler
from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing.progress import Progress
from mindspeed_llm.preprocessing.rejected import RejectedRows
from mindspeed_llm.rawdata import InputFile, Position, Row, mixed_rows
from mindspeed_llm.tokens import IGNORED, TOO_LONG, SampleBuilder, TokenBatch, TokenStore

ROWS_AT_ONCE = 1000
CHARACTERS_AT_ONCE = 4_000_000


@dataclass
class Tally:
    """What has been read; rows_read = kept + the sum of skipped, always.

    Attributes:
        dropped: those of `skipped` that were too long.
        cut_prompts: rows whose last prompt had no answer and was left out.
        end_inside, unended: see TokenBatch.
        columns: of the first row that has any.
        bad: rows that --strict and --max-bad-rows count: all that were skipped but for --overlong drop.
    """

    rows_read: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    dropped: int = 0
    cut_prompts: int = 0
    tokens: int = 0
    trained: int = 0
    end_inside: bool = False
    unended: int = 0
    columns: tuple[str, ...] = ()
    bad: int = 0


@dataclass
class _Batch:
    """Rows in their order; each with its conversation, or the reason why it has none."""

    rows: list[Row] = field(default_factory=list)
    conversations: list[Conversation | str] = field(default_factory=list)
    bytes_read: int = 0

    @property
    def sound(self) -> list[Conversation]:
        return [one for one in self.conversations if isinstance(one, Conversation)]


def read_samples(
    arguments: PreprocessArguments,
    sources: Sequence[Sequence[InputFile]],
    handler: Handler,
    builder: SampleBuilder,
    store: TokenStore,
    rejected: RejectedRows,
) -> Tally:
    """Tokens of all rows into `store`, rows that give no sample into `rejected`.

    Args:
        sources: the files of each --input.

    Raises:
        DataError: a damaged file, a sample that is too long with --overlong error, or more bad rows than --strict and
            --max-bad-rows allow; with file and line.
    """
    tally = Tally()
    progress = Progress(arguments.run.log_interval, sum(file.size for files in sources for file in files))
    waiting: deque[tuple[_Batch, Future[TokenBatch]]] = deque()
    with closing(progress), ThreadPoolExecutor(1) as pool:
        for batch in _batches(arguments, sources, handler, tally):
            waiting.append((batch, pool.submit(builder.build, batch.sound)))
            if len(waiting) > 1:
                _take(arguments, *waiting.popleft(), store, rejected, tally, progress)
        while waiting:
            _take(arguments, *waiting.popleft(), store, rejected, tally, progress)
    tally.skipped = rejected.reasons
    return tally


def _batches(
    arguments: PreprocessArguments, sources: Sequence[Sequence[InputFile]], handler: Handler, tally: Tally
) -> Iterator[_Batch]:
    position = Position()
    batch, characters = _Batch(), 0
    given = arguments.input
    shares = None if given.interleave_probs is None else probabilities_of(given.interleave_probs)
    seed = arguments.output.seed
    for row in mixed_rows(sources, given.mix_strategy, shares, seed, given.max_samples, position):
        if not tally.columns and isinstance(row.value, dict):
            tally.columns = tuple(map(str, row.value))
        found: Conversation | str
        try:
            found = handler.conversation(row.value) if row.problem is None else row.problem
        except BadRow as reason:
            found = str(reason)
        if isinstance(found, Conversation):
            characters += sum(len(turn.prompt) + len(turn.answer) for turn in found.turns)
        batch.rows.append(row)
        batch.conversations.append(found)
        if len(batch.rows) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            batch.bytes_read = position.bytes_read
            yield batch
            batch, characters = _Batch(), 0
    if batch.rows:
        batch.bytes_read = position.bytes_read
        yield batch


def _take(
    arguments: PreprocessArguments,
    batch: _Batch,
    result: Future[TokenBatch],
    store: TokenStore,
    rejected: RejectedRows,
    tally: Tally,
    progress: Progress,
) -> None:
    """Put away what came out of one batch."""
    tokens = result.result()
    store.append(tokens)
    skipped = dict(tokens.skipped)
    number = 0  # among the sound rows
    for row, found in zip(batch.rows, batch.conversations, strict=True):
        if isinstance(found, str):
            rejected.add(row, found)
            tally.bad += 1
            _check_bad_rows(arguments, row, found, tally.bad)
            continue
        reason = skipped.get(number)
        number += 1
        if reason is None:
            tally.cut_prompts += found.cut_prompt
            continue
        if reason == TOO_LONG and arguments.sample.overlong == "error":
            raise DataError(
                f"{row.file}:{row.line}: the sample is longer than --seq-length {arguments.sample.seq_length}; "
                "shorten it, or say --overlong truncate or drop"
            )
        rejected.add(row, reason)
        if reason == TOO_LONG:  # as --overlong drop says: not a bad row
            tally.dropped += 1
            continue
        tally.bad += 1
        _check_bad_rows(arguments, row, reason, tally.bad)
    tally.rows_read += len(batch.rows)
    tally.kept += number - len(skipped)
    tally.truncated += tokens.truncated
    tally.tokens += len(tokens.ids)
    tally.trained += int(np.count_nonzero(tokens.labels != IGNORED))
    tally.end_inside |= tokens.end_inside
    tally.unended += tokens.unended
    progress.update(tally.rows_read, batch.bytes_read)


def _check_bad_rows(arguments: PreprocessArguments, row: Row, reason: str, bad: int) -> None:
    """Stop where the command line does not allow one more bad row."""
    given = arguments.input
    if given.strict:
        raise DataError(f"{row.file}:{row.line}: {reason}; correct the row, or leave --strict out to skip such rows")
    if given.max_bad_rows is not None and bad > given.max_bad_rows:
        raise DataError(
            f"{row.file}:{row.line}: {reason}; this is bad row {bad:,}, --max-bad-rows allows {given.max_bad_rows:,}"
        )
