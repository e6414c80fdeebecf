"""Read the metrics of a run, metrics.jsonl, by iteration.

Training appends one JSON object per line. docs/architecture.md lists the keys:

    {"kind": "start", "layout": {...}, "versions": {...}, "arguments": {...}}      one line per start
    {"kind": "train", "iteration": 10, "loss": 4.2, "tokens_per_second": 5100.0, ...}
    {"kind": "eval", "iteration": 50, "split": "valid", "loss": 3.9, ...}

A resumed run repeats the iterations after its last checkpoint. The last line of an iteration is used.
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
RUN_NAME = "run"  # the run directory in --save
# Values that are means over a log interval. The others are those of its last step.
MEANS = ("loss", "fill", "trained_share", "tokens_per_second", "trained_tokens_per_second", "step_seconds")
Record = dict[str, Any]


@dataclass
class RunMetrics:
    """Metrics of one run in order of iteration, with one record per iteration.

    Attributes:
        path: path of the metrics file.
        starts: the 'start' records in order of time.
        train: the 'train' records.
        evaluations: the 'eval' records by split ("valid", "test").
        damaged: number of damaged lines, for example after a kill; a last line that is being written is not counted.
    """

    path: Path
    starts: list[Record] = field(default_factory=list)
    train: list[Record] = field(default_factory=list)
    evaluations: dict[str, list[Record]] = field(default_factory=dict)
    damaged: int = 0

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return (iterations, values) of `key` for all training records in which it is a finite number."""
        return _finite(self.train, key)

    def points(self, key: str) -> tuple[list[float], list[float]]:
        """Return (iterations, values) of `key` for a curve: a mean is a point in the middle of its log interval."""
        iterations, values = self.series(key)
        if key not in MEANS:
            return list(map(float, iterations)), values
        widths = {record["iteration"]: record.get("steps") for record in self.train}
        before = [0, *iterations]
        middles = []
        for previous, iteration in zip(before, iterations, strict=False):
            steps = widths[iteration]
            # Runs of earlier versions do not say how many steps a line stands for.
            width = steps if isinstance(steps, int) and steps > 0 else max(iteration - previous, 1)
            middles.append(iteration - (width - 1) / 2)
        return middles, values

    def held_out(self, split: str = "valid") -> tuple[list[int], list[float]]:
        """Return (iterations, losses) of the evaluations on `split`."""
        return _finite(self.evaluations.get(split, []), "loss")


def read_metrics(path: str | Path) -> RunMetrics:
    """Read a metrics file.

    An incomplete line is skipped: at the end of the file, or in the middle, where a killed run was resumed and appended
    its first record to the incomplete line. That record is used. Blank lines are ignored.

    Args:
        path: a metrics.jsonl, a run directory that contains it, or a --save directory that contains the run directory.

    Raises:
        DataError: The file is missing, cannot be read, or contains no record.
    """
    path = Path(path)
    if path.is_dir():
        in_save = path / RUN_NAME / METRICS_NAME
        path = in_save if in_save.is_file() and not (path / METRICS_NAME).exists() else path / METRICS_NAME
    try:
        # Bytes that are not UTF-8 damage their line, but not the complete file.
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; give a run directory (--run-dir of the training, or run/ in --save) or its "
            "metrics.jsonl"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    metrics = RunMetrics(path)
    train: dict[int, Record] = {}
    evaluations: dict[str, dict[int, Record]] = {}
    lines = text.splitlines()
    for line in lines:
        if not line.strip():
            continue
        complete = True
        for record in _records(line):
            if record is None:
                complete = False
            elif record["kind"] == "start":
                metrics.starts.append(record)
            elif not isinstance(record.get("iteration"), int):
                complete = False
            # A later record replaces an earlier record of the same iteration, which a resumed run repeats.
            elif record["kind"] == "train":
                train[record["iteration"]] = record
            elif record["kind"] == "eval":
                evaluations.setdefault(str(record.get("split", "valid")), {})[record["iteration"]] = record
        # A last line without a newline is still being written, so it is not damaged.
        metrics.damaged += not complete and (line is not lines[-1] or text.endswith("\n"))
    metrics.train = [train[i] for i in sorted(train)]
    metrics.evaluations = {split: [records[i] for i in sorted(records)] for split, records in evaluations.items()}
    if not (metrics.starts or metrics.train or metrics.evaluations):
        raise DataError(f"{path}: contains no record of a training run; check that this is the metrics.jsonl of a run")
    return metrics


def _records(line: str) -> Iterator[Record | None]:
    """Yield the record of a line, or None if the line is damaged, followed by a complete record at its end, if any."""
    record = _record(line)
    yield record
    if record is None:
        tail = line.rfind('{"kind"')
        if tail > 0 and (after := _record(line[tail:])) is not None:
            yield after


def _record(text: str) -> Record | None:
    """Return the record in `text`, or None if it is damaged."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: deeply nested JSON
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def _finite(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    """Return (iterations, values) of the records in which `key` is a finite number."""
    iterations, values = [], []
    for record in records:
        value = record.get(key)
        # A boolean is an int in Python, but not a metric.
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            iterations.append(record["iteration"])
            values.append(float(value))
    return iterations, values
