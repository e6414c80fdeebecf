"""What became of rows: the outcome of each batch, wherever it was worked out, and the tally of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.boundaries import IGNORED
from mindspeed_llm.chat import Conversation
from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing.control_token_rows import ControlTokenRows
from mindspeed_llm.preprocessing.rejected_rows import RejectedRows
from mindspeed_llm.rawdata import Row
from mindspeed_llm.tokenization import TOO_LONG, FoundControls, TokenBatch, TokenStore

COUNTERS = ("skipped", "steps", "control_tokens")  # of Tally


@dataclass
class RowTally:
    """What has been read; rows_read = kept + the sum of skipped, always.

    Attributes:
        dropped: those of `skipped` that were too long.
        cut_prompts: rows whose last prompt had no answer and was left out.
        end_inside, unended: see TokenBatch.
        columns: of the first row that has any.
        steps: how often each way of cutting was needed.
        bad: rows that --strict and --max-bad-rows count: all that were skipped but for --overlong drop.
        unread: file → fields of its messages that hold text and are not read.
        control_rows: rows with control tokens in their text, kept or not.
        control_tokens: how many of them for each token.
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

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        unread = {file: sorted(names) for file, names in self.unread.items()}
        counted = {name: dict(getattr(self, name)) for name in COUNTERS}
        return {**vars(self), **counted, "columns": list(self.columns), "unread": unread}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> RowTally:
        """The tally that `to_json` gave.

        Raises:
            TypeError: other values.
        """
        counted = {name: Counter(values[name]) for name in COUNTERS}
        unread = {file: set(names) for file, names in values["unread"].items()}
        return cls(**{**values, **counted, "columns": tuple(values["columns"]), "unread": unread})


@dataclass
class RowBatch:
    """Rows in their order; each with its conversation, or the reason why it has none.

    Attributes:
        unread: see Tally.
    """

    rows: list[Row] = field(default_factory=list)
    conversations: list[Conversation | str] = field(default_factory=list)
    bytes_read: int = 0
    unread: dict[str, set[str]] = field(default_factory=dict)

    @property
    def sound(self) -> list[Conversation]:
        return [one for one in self.conversations if isinstance(one, Conversation)]


@dataclass
class BatchOutcome:
    """Samples of some rows in their order, and the rows that gave none, each with the reason.

    Attributes:
        bytes_read: of the input when they had been read.
        columns: of the first row that has any.
        unread: see Tally.
        controls: (file, line, control tokens) of the rows with control tokens in their text.
    """

    tokens: TokenBatch
    rejected: list[tuple[Row, str]]
    rows_read: int
    cut_prompts: int
    bytes_read: int
    columns: tuple[str, ...]
    unread: dict[str, set[str]]
    controls: list[tuple[str, int, FoundControls]]


def make_outcome(batch: RowBatch, tokens: TokenBatch) -> BatchOutcome:
    """What became of `batch`, whose sound conversations gave `tokens`."""
    skipped = dict(tokens.skipped)
    rejected: list[tuple[Row, str]] = []
    controls: list[tuple[str, int, FoundControls]] = []
    cut_prompts = number = 0  # number: among the sound rows
    for row, found in zip(batch.rows, batch.conversations, strict=True):
        if isinstance(found, str):
            rejected.append((row, found))
            continue
        reason = skipped.get(number)
        if number in tokens.controls:
            controls.append((row.file, row.line, tokens.controls[number]))
        number += 1
        if reason is None:
            cut_prompts += found.cut_prompt
        else:
            rejected.append((row, reason))
    columns = next((tuple(map(str, row.value)) for row in batch.rows if isinstance(row.value, dict) and row.value), ())
    return BatchOutcome(
        tokens, rejected, len(batch.rows), cut_prompts, batch.bytes_read, columns, batch.unread, controls
    )


class OutcomeWriter:
    """Puts outcomes away, in the order of their rows: tokens into `store`, rows without a sample into `rejected`.

    Args:
        control_rows: lists the rows with control tokens in their text, but where these are rejected.

    Attributes:
        tally: of all outcomes so far.
        progress: called with all rows and bytes of the input so far, if set.
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

    def take(self, outcome: BatchOutcome) -> None:
        """Put one away.

        Raises:
            DataError: a sample that is too long with --overlong error, or more bad rows than --strict and
                --max-bad-rows allow; with file and line.
        """
        tally, tokens = self.tally, outcome.tokens
        self._store.append(tokens)
        for row, reason in outcome.rejected:
            self._reject(row, reason)
        tally.rows_read += outcome.rows_read
        tally.kept += outcome.rows_read - len(outcome.rejected)
        tally.cut_prompts += outcome.cut_prompts
        tally.truncated += tokens.truncated
        tally.tokens += len(tokens.ids)
        tally.trained += int(np.count_nonzero(tokens.labels != IGNORED))
        tally.end_inside |= tokens.end_inside
        tally.unended += tokens.unended
        tally.steps.update(tokens.steps)
        tally.columns = tally.columns or outcome.columns
        tally.control_rows += len(outcome.controls)
        for file, line, found in outcome.controls:
            tally.control_tokens.update(found.keys())
            if self._arguments.sample.control_tokens_in_text != "reject":  # then they are among the rejected rows
                self._control_rows.add(file, line, found)
        for file, names in outcome.unread.items():
            tally.unread.setdefault(file, set()).update(names)
        if self.progress is not None:
            self.progress(tally.rows_read, outcome.bytes_read)

    def _reject(self, row: Row, reason: str) -> None:
        sample = self._arguments.sample
        if reason == TOO_LONG and sample.overlong == "error":
            raise DataError(
                f"{row.file}:{row.line}: the sample is longer than --seq-length {sample.seq_length}; "
                "shorten it, or say --overlong truncate or drop"
            )
        self._rejected.add(row, reason)
        self.tally.dropped += reason == TOO_LONG
        if reason == TOO_LONG and sample.overlong == "drop":  # as asked: not a bad row
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
