"""Report the progress of a long task: log lines at intervals of time, or a progress bar in a terminal."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5
READING_SECONDS = 10  # between two lines about rows


def progress_bar(total: int, **named: Any) -> tqdm:
    """Create a tqdm progress bar on stderr, as wide as the terminal.

    Args:
        total: number of units at which the bar is complete.
        named: further keyword arguments of tqdm.
    """
    from tqdm import tqdm

    # A terminal that reports the size 0 × 0, as in containers and CI, would make tqdm print nothing.

    size: dict[str, Any] = {"dynamic_ncols": True} if _terminal_has_size() else {"ncols": 100, "nrows": 24}
    return tqdm(total=total, file=sys.stderr, **size, **named)


def _terminal_has_size() -> bool:
    """Return whether stderr is a terminal that reports its size."""
    try:
        return 0 not in os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # stderr has no file descriptor, or is not a terminal
        return False


class ReadingProgress:
    """Progress of reading rows: a progress bar in a terminal, otherwise a log line every READING_SECONDS.

    Args:
        total_bytes: size of all input files in bytes.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = max(1, total_bytes)
        self._started = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = progress_bar(total_bytes, unit="B", unit_scale=True, desc="reading")

    def update(self, rows: int, bytes_read: int) -> None:
        """Report the current progress.

        Args:
            rows: number of rows read since the start.
            bytes_read: number of bytes read since the start.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rows:,} rows", refresh=False)
            self._bar.update(bytes_read - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line >= READING_SECONDS:
            self._last_line = now
            self._log_line(rows, bytes_read, now - self._started)

    def _log_line(self, rows: int, bytes_read: int, seconds: float) -> None:
        share = min(1.0, bytes_read / self._total)
        left = f", {duration(seconds * (1 - share) / share)} left" if share else ""
        logger.info(f"{rows:,} rows, {100 * share:.0f} % of the input, {rows / seconds:,.0f} rows/s{left}")

    def close(self) -> None:
        """Close the progress bar, if there is one."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Format a duration with its two largest units: '42 s', '3 min 20 s', '2 h 5 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def writing_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Log the progress of writing every few seconds and once at the end.

    Args:
        total: number of bytes that will be written.
        title: prefix of each line.

    Yields:
        A function to call with the number of bytes written since its last call.
    """
    start = last_line = time.monotonic()
    written = 0

    def log_line() -> None:
        seconds = max(time.monotonic() - start, 1e-9)
        rate = written / seconds / 1e9
        logger.info(f"{title}: {written / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.2f} GB/s")

    def add_written(count: int) -> None:
        nonlocal written, last_line
        written += count
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            log_line()

    yield add_written
    log_line()
