"""The processes of --workers: a process that dies is reported, and none outlives the run."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from preprocess_command import Command, rows
from small_tokenizers import byte_level_folder
from time_limits import HANG_SECONDS

from mindspeed_llm.errors import DataError
from mindspeed_llm.preprocessing import local_executor, sample_reader, space_check
from mindspeed_llm.preprocessing.batch_outcome import OutcomeWriter

ROOT = Path(__file__).parents[1]
# The program with small blocks; it stops when it has read a part of the input.
STOPS_INSIDE = """
import sys, time
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.preprocessing import local_executor, preprocess
from mindspeed_llm.preprocessing.batch_outcome import OutcomeWriter
local_executor.BLOCK_BYTES = 1024
OutcomeWriter.write = lambda self, outcome: print("inside", flush=True) or time.sleep(600)
preprocess(parse_preprocess_arguments(sys.argv[1:]))
"""


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), rows(60))


@pytest.mark.usefixtures("small_blocks")
def test_processes_that_load_the_inputs_themselves_write_the_same_files(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on systems where a process cannot be forked."""
    command.run()
    written = command.written()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command.run("--workers", "2")
    assert command.written() == written


@pytest.mark.usefixtures("small_blocks")
def test_a_process_that_dies_ends_the_run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_executor, "tokenise_block", die)
    before = set(multiprocessing.active_children())
    with pytest.raises(DataError, match=r"--workers 2: a worker process died.* fewer --workers"):
        command.run("--workers", "2")
    assert not command.prefix.parent.exists() and set(multiprocessing.active_children()) <= before


def test_no_process_outlives_a_run_that_is_killed(command: Command) -> None:
    started = [sys.executable, "-c", STOPS_INSIDE, *command.words("--workers", "2")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(started, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None and run.stdout.readline() == b"inside\n"
        workers = psutil.Process(run.pid).children(recursive=True)
        run.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + HANG_SECONDS
    while any(is_alive(process) for process in workers):
        assert time.monotonic() < deadline, "a worker is still alive"
        time.sleep(0.05)


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_output_that_does_not_fit_on_the_disk_ends_the_run_early(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = command.folder / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    given = ("--input", str(lines))
    monkeypatch.setattr(space_check, "FIRST_BYTES", 1000)
    monkeypatch.setattr(sample_reader, "ROWS_AT_ONCE", 10)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))
    rows_read: list[int] = []
    write = OutcomeWriter.write
    monkeypatch.setattr(OutcomeWriter, "write", lambda self, outcome: rows_read.append(1) or write(self, outcome))
    free = 1000
    with pytest.raises(DataError, match=r"does not fit on the disk: about 1 MiB are needed, 0 MiB are free; free some"):
        command.run(*given)
    assert len(rows_read) < 6 and not command.prefix.parent.exists(), "before the complete input was read"
    free = 1 << 40
    tokens = command.run(*given).tokens
    written = command.written()
    monkeypatch.setattr(space_check, "FIRST_BYTES", 1 << 40)
    free = 12 * tokens  # the packs have more slots
    with pytest.raises(DataError, match="does not fit on the disk: 1 MiB are needed"):
        command.run(*given)
    assert command.written() == written
