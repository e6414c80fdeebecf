"""Preprocess in another process, whose memory is gone when it ends, and which may fork without torch.

The process gets its command as JSON on stdin and writes one JSON object per line to stdout:

    {"log": "12,000 rows, 35 % of the input, …", "level": 20}      a line of its log, and the summary table
    {"problems": ["--map-keys: no row has the column 'q'; …"]}     errors of the user, with exit status 2
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.errors import ConfigError, DataError
from mindspeed_llm.preprocessing.row_blocks import command_of

logger = logging.getLogger(__name__)

PROGRAM = "mindspeed_llm.prepare_data"
CHECKOUT = Path(__file__).parents[2]
SECONDS_TO_END = 10.0
STATUS_AFTER_SIGTERM = 128 + signal.SIGTERM  # as in a shell


def preprocess_in_process(
    command: PreprocessArguments,
    report: Callable[[str], None],
    flag: str = "--data-path",
    program: str = PROGRAM,
    look: float = 1.0,
) -> None:
    """Preprocess in another process, and log its messages.

    Args:
        command: the arguments of preprocess_data.py.
        report: called every `look` seconds and for each message, with the last message. An exception that it raises
            ends the process.
        flag: the flag that names the raw data, for messages.
        program: the module to run.
        look: seconds between two calls of `report`.

    Raises:
        ConfigError: errors of the user that the process reports. Nothing has been written.
        DataError: the process was killed.
        RuntimeError: the process has a defect, whose traceback it has printed.
    """
    # The other packages must be found where this one is; numpy would start threads that idle.
    path = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    words = [sys.executable, "-m", program, str(os.getpid())]
    process = subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    problems: list[str] = []
    with _ended_afterwards(process):
        assert process.stdin is not None and process.stdout is not None
        # A process that ends at once does not read its command; its exit status says why.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(command_of(command).encode())
        progress = "started"
        for message in _messages(process.stdout.fileno(), look):
            if "log" in message:
                progress = own_flags(message["log"], flag)
                logger.log(message["level"], progress)
            problems += [own_flags(problem, flag) for problem in message.get("problems", ())]
            report(progress.splitlines()[0] if progress else "")
        status = process.wait()
    if problems:
        raise ConfigError(problems)
    if status < 0:
        raise DataError(
            f"preprocessing was killed ({signal.Signals(-status).name}), usually because the memory was exhausted; "
            "give fewer --workers, or preprocess on another machine with preprocess_data.py"
        )
    if status:
        raise RuntimeError(f"preprocessing ended with status {status}; its traceback is in the log of this machine")


def own_flags(text: str, flag: str) -> str:
    """Replace the flags of preprocess_data.py in a message by those of this program.

    Args:
        text: the message.
        flag: the flag that names the raw data.
    """
    flags = {"--input": flag, "--output-prefix": "--data-cache-path"}
    return re.sub(r"--(input|output-prefix)(?![\w-])", lambda found: flags[found[0]], text)


def _messages(descriptor: int, look: float) -> Iterator[dict[str, Any]]:
    """Yield the messages of the process until it closes its stdout, and an empty one whenever `look` seconds pass."""
    unread = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], look)
        if not ready:
            yield {}
            continue
        content = os.read(descriptor, 1 << 16)
        if not content:
            return
        *lines, unread = (unread + content).split(b"\n")
        yield from (json.loads(line) for line in lines)


@contextlib.contextmanager
def _ended_afterwards(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process after the block if it is still running, and let it remove its temporary files.

    SIGTERM, with which torchrun ends the ranks, ends this process only after that.
    """

    def leave(*_: object) -> None:
        raise SystemExit(STATUS_AFTER_SIGTERM)

    is_main = threading.current_thread() is threading.main_thread()  # other threads cannot set handlers
    before = signal.signal(signal.SIGTERM, leave) if is_main else None
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if is_main:
            signal.signal(signal.SIGTERM, before)
