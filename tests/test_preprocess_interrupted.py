"""Ctrl-C and SIGTERM during preprocessing: one line, status 128 + signal, and the old output or the new one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from late_ray import LateRay
from preprocess_command import ROOT, Command, rows
from small_tokenizers import byte_level_folder
from stopped_runs import Setting
from time_limits import HANG_SECONDS

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.interrupts import Interrupted, hold_interrupts, interrupts
from mindspeed_llm.prepare_data.__main__ import interruptible
from mindspeed_llm.preprocessing import ray_executor

# The program, with workers that do not end.
BUSY = """
import runpy, sys, time
from mindspeed_llm.tokenization import SampleBuilder

def build(self, conversations):
    print("at work", flush=True)
    time.sleep(60)

SampleBuilder.build = build
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def sigint_is_not_ignored() -> Iterator[None]:
    """As in a terminal; a background job of a shell ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_program_with_one_line(tmp_path: Path, number: signal.Signals) -> None:
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), rows(10))
    before = sorted(tmp_path.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(ROOT / "preprocess_data.py"), *command.words("--workers", "2")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    sent = time.monotonic()
    process.send_signal(number)
    with process:
        _, errors = process.communicate(timeout=HANG_SECONDS)
    assert time.monotonic() - sent < 50, "the process does not wait for its threads"
    assert process.returncode == 128 + number
    lines = errors.splitlines()
    assert (
        lines[0].startswith("reading 1 file")
        and lines[1].startswith("tokenizer library: ")
        and lines[2:] == [f"preprocess_data.py: stopped by {number.name}; no half-written output is left"]
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signal_at_any_stage_leaves_the_old_output_or_the_new_one(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    results = setting.results("interrupt")
    assert results[-1]["status"] == 0 and len(results) > 14
    for result in results[:-1]:
        assert result["status"] == 130 and "error:" not in result["errors"], result
        assert result["left"] in (setting.old, setting.new), f"stage {result['stage']}: {sorted(result['left'])}"
    left = [result["left"] == setting.old for result in results[:-1]]
    assert left == sorted(left, reverse=True), "the old output before the change, the new one after it"
    assert left.count(True) > 10 and not left[-1]


def test_a_held_signal_is_raised_at_the_end_of_the_block_and_only_the_first_one_counts() -> None:
    done = []
    with interrupts():
        with pytest.raises(Interrupted) as stop, hold_interrupts(), hold_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the change is complete")
        assert stop.value.status == 143 and done
        os.kill(os.getpid(), signal.SIGINT)  # no effect on the cleanup
        with hold_interrupts():
            pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Finalized:
    """Sends a signal while Python ignores exceptions."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)  # the handler is called here at the latest


@pytest.mark.parametrize("block", [interrupts, lambda: interruptible(os.getppid())], ids=["program", "process"])
def test_an_exception_that_python_discards_is_raised_again(
    block: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Python ignores exceptions in finalizers and in functions that are called for a fork."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        with pytest.raises(KeyboardInterrupt), block():
            value = Finalized()
            del value
            time.sleep(HANG_SECONDS)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_during_a_run_on_ray_ends_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = []

    class StoppedRay(LateRay):
        def get(self, result: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)

        def shutdown(self) -> None:
            stopped.append(True)

    monkeypatch.setattr(ray_executor, "_connected", lambda arguments: StoppedRay())
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"), rows(10))
    before = sorted(tmp_path.rglob("*"))
    with interrupts():
        assert command.status("--executor", "ray") == 143
    assert stopped and sorted(tmp_path.rglob("*")) == before


def test_ray_does_not_take_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "--input x --output-prefix y --tokenizer-name-or-path t --prompt-type qwen --executor ray"
    arguments = parse_preprocess_arguments(words.split())
    own = signal.getsignal(signal.SIGTERM)
    stopped = []

    def start(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if own != signal.SIG_DFL else signal.SIG_IGN)

    def interrupted(**_: Any) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=start, shutdown=lambda: stopped.append(True)))
    ray_executor._connected(arguments)
    assert signal.getsignal(signal.SIGTERM) == own and not stopped
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=interrupted, shutdown=lambda: stopped.append(True)))
    with pytest.raises(Interrupted):
        ray_executor._connected(arguments)
    assert stopped, "a cluster that has started in part is ended"
