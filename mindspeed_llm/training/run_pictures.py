"""Keep loss.png up to date during a run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from mindspeed_llm.launcher_environment import environment_of_one_process

# Drawing takes about two seconds of processor time, also if a run evaluates every second.
INTERVAL_SECONDS = 30
# A process that hangs must not delay the end of a run for longer.
_TIMEOUT_SECONDS = 30


class RunPictures:
    """Draws loss.png in a separate process, so that no training step waits for it.

    As a context manager it draws the last state of a run that an error ends. The entry point draws the picture of a
    complete run.

    Args:
        run_dir: the run directory, which contains metrics.jsonl.
        active: whether this is rank 0.
        draw: draws the picture in this process; its errors must not hide that of the run.
    """

    def __init__(self, run_dir: Path, active: bool, draw: Callable[[Path], object]) -> None:
        self._run_dir, self._active, self._draw = run_dir, active, draw
        self._process: subprocess.Popen[bytes] | None = None
        self._last = time.monotonic()

    def update(self) -> None:
        """Start to draw the picture, unless it was drawn a short time ago."""
        now = time.monotonic()
        if not self._active or now - self._last < INTERVAL_SECONDS:
            return
        if self._process is not None and self._process.poll() is None:
            return
        self._last = now
        # A failure is of no importance here: the next update tries again, and the entry point reports it at the end.
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mindspeed_llm.reports", str(self._run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment_of_one_process(), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C ends the run, which then draws the last picture
            )

    def draw_last(self) -> None:
        """Draw the picture of a run that ends early."""
        self._wait()
        if self._active:
            with contextlib.suppress(Exception):
                self._draw(self._run_dir)

    def __enter__(self) -> RunPictures:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self._wait()
        else:
            self.draw_last()

    def _wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
