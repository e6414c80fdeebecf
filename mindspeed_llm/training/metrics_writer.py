"""Write the metrics of a run: JSON lines to metrics.jsonl, and the log lines on the console."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_llm.console.progress import progress_bar
from mindspeed_llm.training.experiment_trackers import ExperimentTrackers
from mindspeed_llm.training.run_clock import format_duration

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"
LARGEST_EXPONENT = 700.0  # exp of more exceeds float64


class MetricsWriter:
    """Writes metrics.jsonl and updates the progress bar; does nothing on ranks other than 0.

    Args:
        run_dir: the run directory; created if it does not exist.
        total: iterations of the complete run, for the progress bar.
        done: iterations done before this start.
        active: whether this is rank 0.

    Attributes:
        trackers: experiment trackers that receive the same metrics; None without.
        check_lease: raises LeaseLostError if another run has taken over the run directory.
    """

    def __init__(self, run_dir: Path, total: int, done: int, active: bool) -> None:
        self.active, self._run_dir = active, run_dir
        self.trackers: ExperimentTrackers | None = None
        self.check_lease: Callable[[], None] = lambda: None
        self.total = total
        self._file: FileIO | None = None
        self._failed = False
        self._bar: tqdm | None = None
        if active:
            run_dir.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that a killed process loses no line.
            self._file = FileIO(run_dir / FILE_NAME, "a")
            # A progress bar overwrites its line, which is of no use in a log file.
            if sys.stderr.isatty():
                self._bar = progress_bar(total, initial=done, unit="step")

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl, and pass values that have an `iteration` to the trackers.

        Ranks other than 0 have no file and do nothing.

        If the line cannot be written, for example because the disk is full, an error is logged and training continues.

        Args:
            kind: 'start', 'train', 'eval', or the kind of an EvaluationNote.
            values: values that JSON can hold. A number that is not finite is written as null.

        Raises:
            LeaseLostError: another run now writes to the run directory.
        """
        if self._file is None:
            return
        # Before every line: after losing its lease a run must not mix its metrics with those of the other run.
        self.check_lease()
        # JSON has neither NaN nor infinity; json.dumps would write tokens that other parsers reject.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        line = json.dumps({"kind": kind, **finite, "time": time.time()}) + "\n"
        try:
            self._file.write(line.encode())
            self._failed = False
        except OSError as error:
            # Only the first of consecutive failures is logged: a full disk would repeat the line at every interval.
            if not self._failed:
                logger.error(
                    f"NOT WRITTEN: {self._file.name}: {error.strerror}; training continues without these metrics"
                )
            self._failed = True
        # The 'start' line has no iteration; trackers get its arguments as their configuration.
        if self.trackers is not None and "iteration" in values:
            self.trackers.log(kind, values)

    def append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to another JSONL file of the run directory; an error is logged and training continues.

        Args:
            name: name of the file.
            lines: objects that JSON can hold.

        Raises:
            LeaseLostError: another run now writes to the run directory.
        """
        if not self.active:
            return
        self.check_lease()
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        path = self._run_dir / name
        try:
            with path.open("ab", buffering=0) as file:
                file.write(content.encode())
        except OSError as error:
            logger.error(f"NOT WRITTEN: {path}: {error.strerror}; training continues without these lines")

    def advance(self, iteration: int) -> None:
        """Move the progress bar to an iteration."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def close(self) -> None:
        """Close the trackers, the progress bar and the file."""
        if self.trackers is not None:
            self.trackers.close()
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()


def train_line(values: Mapping[str, Any], total: int) -> str:
    """Format the log line of one log interval.

    Args:
        values: values of the line in metrics.jsonl.
        total: iterations of the complete run.
    """
    remaining = values["remaining_seconds"]
    eta = "" if remaining is None else f" | ETA {format_duration(remaining)}"
    return (
        f"iteration {values['iteration']:>6}/{total} | loss {_format(values['loss'], 6)} | "
        f"learning rate {values['learning_rate']:.3e} | grad norm {_format(values['grad_norm'], 3)} | "
        f"trained tokens/s {values['trained_tokens_per_second']:,.0f} | tokens/s {values['tokens_per_second']:,.0f} | "
        f"fill {100 * values['fill']:.2f} % | step {values['step_seconds']:.3f} s | "
        f"elapsed {format_duration(values['elapsed_seconds'])}{eta}"
    )


def eval_lines(values: Mapping[str, Any]) -> list[str]:
    """Format the log lines of one evaluation, with one for each data source of a blend.

    Args:
        values: values of the line in metrics.jsonl.
    """
    before = f"evaluation after iteration {values['iteration']} | {values['split']}"
    lines = [f"{before} {_held_out(values)}"]
    return lines + [f"{before} {source}: {_held_out(figures)}" for source, figures in values.get("sources", {}).items()]


def _held_out(values: Mapping[str, Any]) -> str:
    return (
        f"loss {_format(values['loss'], 6)} | perplexity {_format(values['perplexity'], 3)} | "
        f"{values['trained_tokens']:,.0f} trained tokens"
    )


def perplexity(loss: float, tokens: float) -> float:
    """Return exp(mean loss of a token); NaN without tokens, infinity where it exceeds float64.

    Args:
        loss: sum of the losses of the tokens.
        tokens: number of tokens.
    """
    if not tokens:
        return math.nan
    mean = loss / tokens
    return math.exp(mean) if mean < LARGEST_EXPONENT else math.inf if mean == mean else math.nan


def source_figures(loss: float, tokens: float) -> dict[str, float | None]:
    """Return loss, perplexity and number of trained tokens of one data source; None where there are no tokens.

    Args:
        loss: sum of the losses of the tokens.
        tokens: number of tokens.
    """
    mean, factor = (loss / tokens if tokens else math.nan), perplexity(loss, tokens)
    return {
        "loss": mean if math.isfinite(mean) else None,
        "perplexity": factor if math.isfinite(factor) else None,
        "trained_tokens": int(tokens),
    }


def _format(value: float | None, decimals: int) -> str:
    """Format a number; a dash if it is unknown or not finite, because nothing was trained."""
    return f"{value:.{decimals}f}" if value is not None and math.isfinite(value) else "–"
