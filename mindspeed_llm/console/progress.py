"""Progress of a long task: a line now and then, or a bar in a terminal."""

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
    """A bar on stderr as wide as the terminal; where that does not know its size (containers, CI) tqdm would print
    nothing.

    Args:
        total: where it ends.
        named: further arguments of tqdm.
    """
    from tqdm import tqdm

    size: dict[str, Any] = {"dynamic_ncols": True} if _terminal_has_size() else {"ncols": 100, "nrows": 24}
    return tqdm(total=total, file=sys.stderr, **size, **named)


def _terminal_has_size() -> bool:
    try:
        return 0 not in os.get_terminal_size(sys.stderr.fileno())
    except OSError:  # stderr is no file of the system, or one without a size
        return False


class ReadingProgress:
    """Progress of reading rows: a line at intervals, or a bar in a terminal.

    Args:
        interval: rows between lines.
        total_bytes: size of all input files.
    """

    def __init__(self, interval: int, total_bytes: int) -> None:
        self._interval, self._total = interval, max(1, total_bytes)
        self._rows, self._next, self._started = 0, interval, time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = progress_bar(total_bytes, unit="B", unit_scale=True, desc="reading")

    def update(self, rows: int, bytes_read: int) -> None:
        """Say how far the reading is: all rows and bytes so far."""
        self._rows = rows
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rows:,} rows", refresh=False)
            self._bar.update(bytes_read - self._bar.n)
        elif rows >= self._next:
            self._next = (rows // self._interval + 1) * self._interval
            self._line(bytes_read)

    def _line(self, bytes_read: int) -> None:
        seconds = max(1e-9, time.monotonic() - self._started)
        logger.info(
            f"{self._rows:,} rows, {100 * bytes_read / self._total:.0f} % of the input, "
            f"{self._rows / seconds:,.0f} rows/s, {bytes_read / seconds / 1e6:.2f} MB/s"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def writing_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Progress of writing: a line every few seconds and at the end.

    Args:
        total: bytes that will be written.
        title: what each line begins with.

    Yields:
        a function to call with the number of bytes written since the last call.
    """
    start = said = time.monotonic()
    written = 0

    def line() -> None:
        seconds = max(time.monotonic() - start, 1e-9)
        rate = written / seconds / 1e9
        logger.info(f"{title}: {written / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.2f} GB/s")

    def done(count: int) -> None:
        nonlocal written, said
        written += count
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            line()

    yield done
    line()
