"""Outcomes of row batches: their samples, rejected rows and counts, and the tally of all batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import ANSWER_NOT_FOUND, Conversation
from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing.control_token_rows import ControlTokenRows
from mindspeed_llm.preprocessing.rejected_rows import RejectedRows
from mindspeed_llm.rawdata import Row
from mindspeed_llm.tokenization import TOO_LONG, FoundControls, SampleBuilder, TokenStore, Words, encode_words

FIRST_ROWS = 1_000  # rows that show whether the answers of a chat template can be found
COUNTERS = ("skipped", "steps", "control_tokens")  # fields of RowTally


@dataclass
class RowTally:
    """Counts of all rows that have been read; rows_read = kept + sum of skipped.

    Attributes:
        rows_read: number of rows.
        kept: rows that gave a sample.
        skipped: number of rows per reason.
        truncated: rows whose sample was truncated.
        dropped: rows of `skipped` whose sample was too long.
        cut_prompts: rows whose last prompt had no answer and was removed.
        tokens: tokens of all samples.
        trained: tokens with a label.
        end_inside: whether a sample has an end token inside; see TokenBatch.
        unended: samples that do not end with an end token; see TokenBatch.
        columns: column names of the first row that has any.
        steps: number of samples per truncation step.
        bad: rows that --strict and --max-bad-rows count: all skipped rows except those of --overlong drop.
        unread: file → fields of its messages that contain text and are not read.
        control_rows: rows with control tokens in their text, kept or not.
        control_tokens: number of these rows per control token.
        answers_not_found: rows among the first FIRST_ROWS in which the chat template's answers cannot be found.
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
    steps: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    unread: dict[str, set[str]] = field(default_factory=dict)
    control_rows: int = 0
    control_tokens: Counter[str] = field(default_factory=Counter)
    answers_not_found: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the tally as values that JSON can represent."""
        unread = {file: sorted(names) for file, names in self.unread.items()}
        counted = {name: dict(getattr(self, name)) for name in COUNTERS}
        return {**vars(self), **counted, "columns": list(self.columns), "unread": unread}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> RowTally:
        """Create a tally from the values of `to_json`.

        Raises:
            KeyError: a counter is missing.
            TypeError: the values have other names.
        """
        counted = {name: Counter(values[name]) for name in COUNTERS}
        unread = {file: set(names) for file, names in values["unread"].items()}
        return cls(**{**values, **counted, "columns": tuple(values["columns"]), "unread": unread})


@dataclass
class RowBatch:
    """Some rows of the input, in order.

    Attributes:
        rows: the rows.
        conversations: for each row its conversation, or the reason why it has none.
        bytes_read: bytes of the input that had been read after the last row.
        unread: see RowTally.
    """

    rows: list[Row] = field(default_factory=list)
    conversations: list[Conversation | str] = field(default_factory=list)
    bytes_read: int = 0
    unread: dict[str, set[str]] = field(default_factory=dict)

    @property
    def sound(self) -> list[Conversation]:
        """Conversations of the rows that have one."""
        return [conversation for conversation in self.conversations if isinstance(conversation, Conversation)]


@dataclass
class BatchOutcome:
    """Samples of a row batch, and the rows that gave no sample.

    Attributes:
        words: tokens of the samples, in the order of the rows, uint32 [tokens]; see `encode_words`.
        lengths: number of tokens of each sample, int32 [samples].
        trained: tokens with a label.
        truncated: see TokenBatch.
        end_inside: see TokenBatch.
        unended: see TokenBatch.
        steps: see TokenBatch.
        rejected: rows without a sample: index among the rows of the batch, row, reason.
        rows_read: number of rows.
        cut_prompts: rows whose last prompt had no answer and was removed.
        bytes_read: bytes of the input that had been read after the last row.
        columns: column names of the first row that has any.
        unread: see RowTally.
        controls: (file, line, control tokens) of the rows with control tokens in their text.
    """

    words: Words
    lengths: NDArray[np.int32]
    trained: int
    truncated: int
    end_inside: bool
    unended: int
    steps: Counter[str]
    rejected: list[tuple[int, Row, str]]
    rows_read: int
    cut_prompts: int
    bytes_read: int
    columns: tuple[str, ...]
    unread: dict[str, set[str]]
    controls: list[tuple[str, int, FoundControls]]


def tokenise_batch(batch: RowBatch, builder: SampleBuilder) -> BatchOutcome:
    """Tokenise the conversations of a row batch.

    Args:
        batch: the rows.
        builder: makes samples of conversations.
    """
    tokens = builder.build(batch.sound)
    skipped = dict(tokens.skipped)
    rejected: list[tuple[int, Row, str]] = []
    controls: list[tuple[str, int, FoundControls]] = []
    cut_prompts = number = 0  # number: index among the sound rows
    for index, (row, found) in enumerate(zip(batch.rows, batch.conversations, strict=True)):
        if isinstance(found, str):
            rejected.append((index, row, found))
            continue
        reason = skipped.get(number)
        if number in tokens.controls:
            controls.append((row.file, row.line, tokens.controls[number]))
        number += 1
        if reason is None:
            cut_prompts += found.cut_prompt
        else:
            rejected.append((index, row, reason))
    columns = next((tuple(map(str, row.value)) for row in batch.rows if isinstance(row.value, dict) and row.value), ())
    return BatchOutcome(
        encode_words(tokens.ids, tokens.labels, builder.eos_id),
        tokens.lengths,
        int(np.count_nonzero(tokens.labels != IGNORE_INDEX)),
        tokens.truncated,
        tokens.end_inside,
        tokens.unended,
        tokens.steps,
        rejected,
        len(batch.rows),
        cut_prompts,
        batch.bytes_read,
        columns,
        batch.unread,
        controls,
    )


class OutcomeWriter:
    """Write outcomes in the order of their rows, and count them.

    Args:
        arguments: the command line.
        store: receives the tokens.
        rejected: receives the rows without a sample.
        control_rows: receives the rows with control tokens in their text, unless these are rejected.

    Attributes:
        tally: counts of all outcomes so far.
        progress: if set, called with the number of rows and of input bytes so far.
    """

    def __init__(
        self,
        arguments: PreprocessArguments,
        store: TokenStore,
        rejected: RejectedRows,
        control_rows: ControlTokenRows,
    ) -> None:
        self._arguments, self._store = arguments, store
        self._rejected, self._control_rows = rejected, control_rows
        self.progress: Callable[[int, int], None] | None = None
        self.tally = RowTally(skipped=rejected.counts)

    def write(self, outcome: BatchOutcome) -> None:
        """Write one outcome.

        Raises:
            DataError: a sample is too long and --overlong is error, or there are more bad rows than --strict or
                --max-bad-rows allows; the message names file and line. Or the answers cannot be found in more than a
                tenth of the first rows.
        """
        tally = self.tally
        self._store.append(outcome.words, outcome.lengths)
        for index, row, reason in outcome.rejected:
            self._reject(row, reason)
            if reason == ANSWER_NOT_FOUND and tally.rows_read + index < FIRST_ROWS:
                tally.answers_not_found += 1
                self._check_answers(FIRST_ROWS)
        tally.rows_read += outcome.rows_read
        tally.kept += outcome.rows_read - len(outcome.rejected)
        tally.cut_prompts += outcome.cut_prompts
        tally.truncated += outcome.truncated
        tally.tokens += len(outcome.words)
        tally.trained += outcome.trained
        tally.end_inside |= outcome.end_inside
        tally.unended += outcome.unended
        tally.steps.update(outcome.steps)
        tally.columns = tally.columns or outcome.columns
        tally.control_rows += len(outcome.controls)
        for file, line, found in outcome.controls:
            tally.control_tokens.update(found.keys())
            # With "reject" these rows are in the list of rejected rows already.
            if self._arguments.sample.control_tokens_in_text != "reject":
                self._control_rows.add(file, line, found)
        for file, names in outcome.unread.items():
            tally.unread.setdefault(file, set()).update(names)
        if self.progress is not None:
            self.progress(tally.rows_read, outcome.bytes_read)

    def finish(self) -> None:
        """Check the rows after the last one.

        Raises:
            DataError: there are fewer than FIRST_ROWS rows, and in more than a tenth of them an answer cannot be found.
        """
        self._check_answers(min(self.tally.rows_read, FIRST_ROWS))

    def _check_answers(self, rows: int) -> None:
        """Raise DataError if an answer cannot be found in more than a tenth of the first `rows` rows."""
        found_too_few = self.tally.answers_not_found * 10 > rows
        if found_too_few and self._arguments.input.max_bad_rows is None:
            raise DataError(
                f"{self.tally.answers_not_found:,} of the first {rows:,} rows: {ANSWER_NOT_FOUND}; give a template "
                "that marks answers with {% generation %} (--chat-template FILE), one of this project's templates "
                "(--prompt-type NAME), or --max-bad-rows N to leave such rows out"
            )

    def _reject(self, row: Row, reason: str) -> None:
        sample = self._arguments.sample
        if reason == TOO_LONG and sample.overlong == "error":
            virtual = f" with --virtual-tokens {sample.virtual_tokens}" if sample.virtual_tokens else ""
            raise DataError(
                f"{row.file}:{row.line}: the sample is longer than --seq-length {sample.seq_length}{virtual}; "
                "shorten it, or give --overlong truncate or drop"
            )
        self._rejected.add(row, reason)
        self.tally.dropped += reason == TOO_LONG
        if reason == TOO_LONG and sample.overlong == "drop":  # requested by the user: not a bad row
            return
        self.tally.bad += 1
        given, bad = self._arguments.input, self.tally.bad
        if given.strict:
            raise DataError(
                f"{row.file}:{row.line}: {reason}; correct the row, or leave --strict out to skip such rows"
            )
        if given.max_bad_rows is not None and bad > given.max_bad_rows:
            raise DataError(
                f"{row.file}:{row.line}: {reason}; this is bad row {bad:,}, "
                f"--max-bad-rows allows {given.max_bad_rows:,}"
            )
