"""Progress of a long task: a line now and then, or a bar in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mindspeed_llm.errors import printable


class Progress:
    """Args:
    interval: rows between lines.
    total_bytes: size of all input files.
    """

    def __init__(self, interval: int, total_bytes: int) -> None:
        self._interval, self._total = interval, max(1, total_bytes)
        self._rows, self._next, self._started = 0, interval, time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_bytes, unit="B", unit_scale=True, desc="reading", file=sys.stderr)

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
        say(
            f"{self._rows:,} rows, {100 * bytes_read / self._total:.0f} % of the input, "
            f"{self._rows / seconds:,.0f} rows/s, {bytes_read / seconds / 1e6:.2f} MB/s"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def say(line: str) -> None:
    """One line to stderr, at once."""
    print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Lines on stderr that say how far the conversion is, every few seconds and at the end."""
    start = said = time.monotonic()
    written = 0

    def line() -> None:
        seconds = max(time.monotonic() - start, 1e-9)
        rate = written / seconds / 1e9
        print(
            f"{title}: {written / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.2f} GB/s",
            file=sys.stderr,
            flush=True,
        )

    def done(count: int) -> None:
        nonlocal written, said
        written += count
        if time.monotonic() - said > 5:
            said = time.monotonic()
            line()

    yield done
    line()
