"""metrics.jsonl of a run → numbers by iteration.

Training appends one JSON object a line (the keys are those of the contract with training in docs/architecture.md):

    {"kind": "start", "layout": {...}, "versions": {...}, "arguments": {...}}      once for each start
    {"kind": "train", "iteration": 10, "loss": 4.2, "tokens_per_second": 5100.0, ...}
    {"kind": "eval", "iteration": 50, "split": "valid", "loss": 3.9, ...}

A run that was stopped and started again repeats the iterations after its last checkpoint: the later line counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import DataError

METRICS_NAME = "metrics.jsonl"
Record = dict[str, Any]


@dataclass
class RunMetrics:
    """What one run wrote, in order of iteration, each iteration once.

    Attributes:
        path: the file read.
        starts: the 'start' records, first to last.
        train: the 'train' records.
        evaluations: the 'eval' records by split ("valid", "test").
        damaged: how many lines could not be read (torn by a kill), the one being written apart; normally 0.
    """

    path: Path
    starts: list[Record] = field(default_factory=list)
    train: list[Record] = field(default_factory=list)
    evaluations: dict[str, list[Record]] = field(default_factory=dict)
    damaged: int = 0

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """(iterations, values) of `key` over the training records that have a finite number there."""
        return _finite(self.train, key)

    def held_out(self, split: str = "valid") -> tuple[list[int], list[float]]:
        """(iterations, losses) of the evaluations on `split`."""
        return _finite(self.evaluations.get(split, []), "loss")


def read_metrics(path: str | Path) -> RunMetrics:
    """Read a metrics.jsonl, or the one in a run folder.

    A torn last line is passed over; so is one in the middle, where a killed run was started again and appended to it
    (what follows it on the same line is kept). Blank lines do not count.

    Raises:
        DataError: the file is missing, not UTF-8, or holds no record.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS_NAME
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a run folder (--run-dir of the training) or its metrics") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    metrics = RunMetrics(path)
    train: dict[int, Record] = {}
    evaluations: dict[str, dict[int, Record]] = {}
    lines = text.splitlines()
    for line in lines:
        if not line.strip():
            continue
        whole = True
        for record in _records(line):
            if record is None:
                whole = False
            elif record["kind"] == "start":
                metrics.starts.append(record)
            elif not isinstance(record.get("iteration"), int):
                whole = False
            elif record["kind"] == "train":
                train[record["iteration"]] = record
            elif record["kind"] == "eval":
                evaluations.setdefault(str(record.get("split", "valid")), {})[record["iteration"]] = record
        # A last line without its newline is one that is being written.
        metrics.damaged += not whole and (line is not lines[-1] or text.endswith("\n"))
    metrics.train = [train[i] for i in sorted(train)]
    metrics.evaluations = {split: [found[i] for i in sorted(found)] for split, found in evaluations.items()}
    if not (metrics.starts or metrics.train or metrics.evaluations):
        raise DataError(f"{path}: holds no record of a training run; is it the right file?")
    return metrics


def _records(line: str) -> Iterator[Record | None]:
    """The record of a line; None for a damaged one, followed by what can be read of its tail."""
    record = _record(line)
    yield record
    if record is None:
        tail = line.rfind('{"kind"')
        if tail > 0 and (after := _record(line[tail:])) is not None:
            yield after


def _record(text: str) -> Record | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def _finite(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    iterations, values = [], []
    for record in records:
        value = record.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            iterations.append(record["iteration"])
            values.append(float(value))
    return iterations, values
