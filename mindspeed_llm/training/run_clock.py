"""Elapsed and remaining time of a run."""

from __future__ import annotations

import time


class RunClock:
    """Measures the time of a run since its start and estimates what remains, with evaluations and checkpoints.

    Args:
        iterations: number of iterations of the complete run.
        done: number of iterations before this start.
    """

    def __init__(self, iterations: int, done: int) -> None:
        self._iterations = iterations
        self._begin = time.perf_counter()
        # The first iteration of a start includes the warm-up, so the estimate begins after it.
        self._first = done + 1
        self._first_end: float | None = None

    def advance(self, iteration: int) -> None:
        """Note that an iteration is complete."""
        if iteration == self._first:
            self._first_end = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._begin

    def remaining(self, iteration: int) -> float | None:
        """Return the estimated seconds to the end of the run; None before the second iteration of this start.

        Args:
            iteration: number of completed iterations.
        """
        if self._first_end is None or iteration <= self._first:
            return None
        seconds = (time.perf_counter() - self._first_end) / (iteration - self._first)
        return seconds * (self._iterations - iteration)


def format_duration(seconds: float) -> str:
    """Format a duration: '0:00:07', '2:03:59', or '3 d 02:03:59'."""
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours}:{minutes:02}:{rest:02}"
