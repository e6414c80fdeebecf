"""Console logging of the entry points.

Modules log with `logging.getLogger(__name__)`. Importing the package configures nothing: a program that uses it as a
library configures `logging` itself, and each entry point calls `configure_logging` once.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal

from mindspeed_llm.errors import escape_control_characters

PACKAGE_LOGGER = "mindspeed_llm"


class RankZeroFilter(logging.Filter):
    """Drop the records of all ranks but rank 0, so that a job prints each message once.

    Args:
        rank: global rank of this process.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is printed: always on rank 0, never on the other ranks."""
        return self.rank == 0


class ConsoleHandler(logging.Handler):
    """Print each record as one plain line, above a progress bar where one is shown.

    Warnings and errors go to stderr. The streams are looked up for each record, because a caller may replace them.

    Args:
        info_stream: the stream of messages below the level WARNING.
    """

    def __init__(self, info_stream: Literal["stdout", "stderr"]) -> None:
        super().__init__()
        self.info_stream = info_stream

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        stream = sys.stderr if record.levelno >= logging.WARNING else getattr(sys, self.info_stream)
        try:
            # Messages quote file names and texts of the data, which could control the terminal.
            text = escape_control_characters(self.format(record))
            bars = sys.modules.get("tqdm")  # without an import of tqdm there is no bar
            if bars is None:
                print(text, file=stream)
            else:
                bars.tqdm.write(text, file=stream)
            stream.flush()
        # As in logging.StreamHandler: a message that cannot be printed must not end the program.
        except Exception:
            self.handleError(record)


def configure_logging(rank: int = 0, info_stream: Literal["stdout", "stderr"] = "stderr") -> None:
    """Print the log messages of this package on the console, from rank 0 only.

    A second call replaces the configuration of the first one.

    Args:
        rank: global rank of this process.
        info_stream: the stream of messages below the level WARNING: stdout for training, whose log is its output;
            stderr for programs whose output is a table or a file name.
    """
    logger = logging.getLogger(PACKAGE_LOGGER)
    # Only our own handlers are removed: those of a test or of a caller remain.
    for handler in list(logger.handlers):
        if isinstance(handler, ConsoleHandler):
            logger.removeHandler(handler)
    handler = ConsoleHandler(info_stream)
    handler.addFilter(RankZeroFilter(rank))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # A handler of the root logger would print each line a second time.
    logger.propagate = False
