"""Where the figures of a run go: one line on the screen, one JSON line in the run folder."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_llm.console.progress import progress_bar
from mindspeed_llm.training.experiment_trackers import ExperimentTrackers

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Writes metrics.jsonl and the lines a person reads; does nothing on ranks other than 0.

    Args:
        run_dir: the run folder; created.
        total: iterations of the run, for the progress bar.
        done: iterations done before.
        active: True on rank 0.

    Attributes:
        trackers: other places for the same figures, if there are any.
        check_lease: raises LeaseLostError if another run has taken the run folder over.
    """

    def __init__(self, run_dir: Path, total: int, done: int, active: bool) -> None:
        self.active = active
        self.trackers: ExperimentTrackers | None = None
        self.check_lease: Callable[[], None] = lambda: None
        self.total = total
        self._file: FileIO | None = None
        self._failed = False
        self._bar: tqdm | None = None
        if active:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(run_dir / FILE_NAME, "a")  # unbuffered: nothing waits in it that a kill could lose
            if sys.stderr.isatty():
                self._bar = progress_bar(total, initial=done, unit="step")

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """Append one JSON line. A number that is not finite is written as null: JSON has no word for it.

        Where it cannot be written (a full disk) that is said once, and training goes on.

        Raises:
            LeaseLostError: another run writes there now.
        """
        if self._file is None:
            return
        self.check_lease()
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        line = json.dumps({"kind": kind, **finite, "time": time.time()}) + "\n"
        try:
            self._file.write(line.encode())
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.error(
                    f"NOT WRITTEN: {self._file.name}: {error.strerror}; training goes on without these figures"
                )
            self._failed = True
        if self.trackers is not None and "iteration" in values:
            self.trackers.log(kind, values)

    def advance(self, iteration: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.update(iteration - self._bar.n)

    def close(self) -> None:
        """Close file and progress bar."""
        if self.trackers is not None:
            self.trackers.close()
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self._file.close()


def train_line(values: Mapping[str, Any], total: int) -> str:
    """The line of one log interval."""
    return (
        f"iteration {values['iteration']:>6}/{total} | loss {_number(values['loss'], 6)} | "
        f"learning rate {values['learning_rate']:.3e} | grad norm {_number(values['grad_norm'], 3)} | "
        f"trained tokens/s {values['trained_tokens_per_second']:,.0f} | tokens/s {values['tokens_per_second']:,.0f} | "
        f"fill {100 * values['fill']:.2f} % | step {values['step_seconds']:.3f} s"
    )


def eval_line(values: Mapping[str, Any]) -> str:
    """The line of one evaluation."""
    return (
        f"evaluation after iteration {values['iteration']} | {values['split']} loss {_number(values['loss'], 6)} | "
        f"{values['trained_tokens']:,.0f} trained tokens"
    )


def _number(value: float, places: int) -> str:
    """A dash where there is none: nothing was trained."""
    return f"{value:.{places}f}" if math.isfinite(value) else "–"
