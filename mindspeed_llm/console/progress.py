"""Report the progress of a long task: log lines at intervals, or a progress bar in a terminal."""

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
    """Progress of reading rows: log lines at intervals, or a progress bar in a terminal.

    Args:
        interval: number of rows between two log lines.
        total_bytes: size of all input files in bytes.
    """

    def __init__(self, interval: int, total_bytes: int) -> None:
        self._interval, self._total = interval, max(1, total_bytes)
        self._rows, self._next, self._started = 0, interval, time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = progress_bar(total_bytes, unit="B", unit_scale=True, desc="reading")

    def update(self, rows: int, bytes_read: int) -> None:
        """Report the current progress.

        Args:
            rows: number of rows read since the start.
            bytes_read: number of bytes read since the start.
        """
        self._rows = rows
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rows:,} rows", refresh=False)
            self._bar.update(bytes_read - self._bar.n)
        elif rows >= self._next:
            # Rows arrive in batches, which may pass several intervals at once: one line is enough for all of them.
            self._next = (rows // self._interval + 1) * self._interval
            self._log_line(bytes_read)

    def _log_line(self, bytes_read: int) -> None:
        seconds = max(1e-9, time.monotonic() - self._started)
        logger.info(
            f"{self._rows:,} rows, {100 * bytes_read / self._total:.0f} % of the input, "
            f"{self._rows / seconds:,.0f} rows/s, {bytes_read / seconds / 1e6:.2f} MB/s"
        )

    def close(self) -> None:
        """Close the progress bar, if there is one."""
        if self._bar is not None:
            self._bar.close()


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
