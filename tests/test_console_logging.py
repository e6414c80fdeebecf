"""Console output of log messages: ranks, streams, control characters, a second configuration, and progress bars."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from tqdm import tqdm

from mindspeed_llm.console.logging_config import PACKAGE_LOGGER, configure_logging

logger = logging.getLogger(f"{PACKAGE_LOGGER}.console.test")


@pytest.fixture(autouse=True)
def restored_logger() -> Iterator[None]:
    """Restore the package logger, which other tests of the same process use without a console handler."""
    package = logging.getLogger(PACKAGE_LOGGER)
    handlers, level, propagate = list(package.handlers), package.level, package.propagate
    yield
    package.handlers[:] = handlers
    package.setLevel(level)
    package.propagate = propagate


def log_one_of_each_level() -> None:
    logger.debug("debug")
    logger.info("info")
    logger.warning("warning")
    logger.error("error")


@pytest.mark.parametrize(
    ("stream", "out", "err"),
    [("stdout", "info\n", "warning\nerror\n"), ("stderr", "", "info\nwarning\nerror\n")],
)
def test_info_goes_to_the_chosen_stream_and_warnings_to_stderr(capsys, stream, out, err) -> None:
    configure_logging(info_stream=stream)
    log_one_of_each_level()
    assert capsys.readouterr() == (out, err)


def test_only_rank_0_prints(capsys) -> None:
    configure_logging(rank=1)
    log_one_of_each_level()
    assert capsys.readouterr() == ("", "")
    configure_logging(rank=0)
    log_one_of_each_level()
    assert capsys.readouterr() == ("", "info\nwarning\nerror\n")


def test_control_characters_are_escaped(capsys) -> None:
    configure_logging()
    logger.warning("a file named \x1b[2J%s", "\x07")
    assert capsys.readouterr().err == "a file named \\x1b[2J\\x07\n"


def test_a_second_configuration_replaces_the_first(capsys) -> None:
    other = logging.NullHandler()
    package = logging.getLogger(PACKAGE_LOGGER)
    package.addHandler(other)
    configure_logging(rank=1, info_stream="stdout")
    configure_logging(rank=0, info_stream="stderr")
    logger.info("once")
    assert capsys.readouterr() == ("", "once\n")
    assert other in package.handlers, "handlers of the caller remain"


def test_a_handler_of_the_root_logger_prints_nothing_twice(capsys, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler()])
    configure_logging()
    logger.info("once")
    assert capsys.readouterr().err == "once\n"


def test_streams_are_looked_up_for_each_record(capsys, monkeypatch) -> None:
    configure_logging()
    replaced = io.StringIO()
    monkeypatch.setattr("sys.stderr", replaced)
    logger.info("later")
    assert replaced.getvalue() == "later\n"


def test_a_line_is_printed_above_a_progress_bar(monkeypatch) -> None:
    """The bar is cleared, the line printed, and the bar drawn again below it."""
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    configure_logging()
    with tqdm(total=4, file=terminal, ncols=40, mininterval=0, leave=True) as bar:
        bar.update(1)
        before = len(terminal.getvalue())
        logger.info("a message")
        text = terminal.getvalue()[before:]
    cleared, line, redrawn = text.partition("a message\n")
    assert line and cleared.startswith("\r") and not cleared.strip(), "the bar is cleared before the line"
    assert "1/4" in redrawn and "\n" not in redrawn, "and drawn again after it"


def test_a_stream_that_fails_does_not_end_the_program(capsys, monkeypatch) -> None:
    class FullDisk(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("No space left on device")

    configure_logging(info_stream="stdout")
    monkeypatch.setattr("sys.stdout", FullDisk())
    logger.info("lost")
    assert "No space left on device" in capsys.readouterr().err, "logging reports the failure on stderr"
