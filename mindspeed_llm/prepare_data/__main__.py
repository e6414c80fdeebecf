"""Preprocess as `preprocess_process` asks: command on stdin, messages on stdout."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator

from mindspeed_llm.console.logging_config import PACKAGE_LOGGER
from mindspeed_llm.errors import USER_ERROR_STATUS, ConfigError, UserError
from mindspeed_llm.interrupts import raised_again

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_CLEAN_UP = 8.0  # less than preprocess_process waits


class MessageHandler(logging.Handler):
    """Send each log record to the process that has started this one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        send(log=self.format(record), level=record.levelno)


def send(**message: object) -> None:
    """Write one message to stdout."""
    print(json.dumps(message), file=sys.__stdout__, flush=True)


@contextlib.contextmanager
def interruptible(parent: int) -> Iterator[None]:
    """Raise KeyboardInterrupt inside the block after SIGINT or SIGTERM, or when the parent process is gone.

    It is raised once: a second one would interrupt the removal of temporary files and the end of the workers. If the
    process is still alive some seconds later, it ends at once, and the next run removes its files.

    Args:
        parent: process id of the parent.
    """

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_CLEAN_UP)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    # A timer and not a thread: a process that forks workers should have no thread.
    def look(*_: object) -> None:
        if os.getppid() != parent:
            interrupt()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_BETWEEN_LOOKS, SECONDS_BETWEEN_LOOKS)
    try:
        with raised_again(interrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # without the handler, which Python removes at its end, it would kill


def main() -> int:
    """Preprocess, and return the exit status."""
    package = logging.getLogger(PACKAGE_LOGGER)
    package.addHandler(MessageHandler())
    package.setLevel(logging.INFO)
    package.propagate = False
    from mindspeed_llm.preprocessing import preprocess
    from mindspeed_llm.preprocessing.row_blocks import parse_command

    try:
        with interruptible(int(sys.argv[1])), contextlib.redirect_stdout(io.StringIO()) as table:
            preprocess(parse_command(sys.stdin.read()))
    except UserError as error:
        send(problems=error.problems if isinstance(error, ConfigError) else [str(error)])
        return USER_ERROR_STATUS
    send(log=table.getvalue().rstrip("\n"), level=logging.INFO)
    return 0


if __name__ == "__main__":
    # The parent reports the reason if it interrupts this process; temporary files are removed by now.
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(1)
