"""Progress of reading: lines at intervals of time, whatever the number of rows, or a bar with the remaining time."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from mindspeed_llm.console import progress
from mindspeed_llm.console.progress import ReadingProgress, duration


def test_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    reading = ReadingProgress(2_000_000)
    for batch in range(1, 301):  # 300,000 rows in 30 seconds
        now = 100.0 + batch / 10
        reading.update(1_000 * batch, 5_000 * batch)
    reading.close()
    assert capsys.readouterr().err.splitlines() == [
        "100,000 rows, 25 % of the input, 10,000 rows/s, 30 s left",
        "200,000 rows, 50 % of the input, 10,000 rows/s, 20 s left",
        "300,000 rows, 75 % of the input, 10,000 rows/s, 10 s left",
    ]


def test_a_slow_batch_gives_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now))
    reading = ReadingProgress(1_000)
    now = 95.0
    reading.update(7, 0)
    reading.update(8, 1_200)  # a file that has grown
    now = 105.0
    reading.update(9, 1_200)
    assert capsys.readouterr().err.splitlines() == [
        "7 rows, 0 % of the input, 0 rows/s",
        "9 rows, 100 % of the input, 0 rows/s, 0 s left",
    ]


def test_a_bar_shows_rows_and_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    reading = ReadingProgress(1_000)
    reading._bar.start_t -= 20  # 20 seconds ago
    reading._bar.mininterval = 0
    reading.update(30, 500)
    reading.close()
    shown = terminal.getvalue()
    assert "50%" in shown and "00:20<00:20" in shown and "30 rows" in shown, shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7_530, "2 h 5 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
