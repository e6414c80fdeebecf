"""SIGTERM to torchrun while saves take longer than it is patient: what the scripts raise its patience for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS
from tiny_runs import ROOT, RUN, train_records, write_files

PROGRAM = Path(__file__).with_name("slow_save_program.py")
SCRIPT = ROOT / "examples/mcore/common.sh"
FLAGS = "--split 100,0,0 --eval-iters 0 --train-iters 2000"


def patience_of_the_script() -> str:
    """Seconds that the script lets torchrun wait."""
    [seconds] = re.findall(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-(\d+)", SCRIPT.read_text("utf-8"))
    return str(seconds)


def end_torchrun(folder: Path, save_seconds: float, patience: str | None, number: signal.Signals) -> list[str]:
    """Send a signal to a torchrun of two ranks after some steps, as a scheduler or Ctrl-C does.

    Returns: what each rank that ended by itself had as its status.
    """
    data = write_files(folder / "data")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(PROGRAM)]
    command += [str(folder), str(save_seconds), *RUN.split(), *FLAGS.split()]
    command += ["--data-path", str(data), "--save", str(folder / "save")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", None)
    if patience is not None:
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = patience
    log, metrics = folder / "log", folder / "save" / "run" / "metrics.jsonl"
    with log.open("w") as output:
        agent = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while not (metrics.exists() and metrics.read_text().count('"train"') >= 3):
            assert agent.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        agent.send_signal(number)
        agent.wait(HANG_SECONDS)
    finally:
        if agent.poll() is None:
            os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()
    return [path.read_text() for path in sorted(folder.glob("status_*"))]


@pytest.mark.parametrize(
    ("save_seconds", "number"),
    [
        (4, signal.SIGTERM),
        pytest.param(40, signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(40, signal.SIGINT, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_with_the_shutdown_timeout_of_the_scripts_the_last_save_is_finished(tmp_path, save_seconds, number):
    """Every rank leaves with status 3, and the checkpoint of the last step is there and whole."""
    from mindspeed_llm.devices import apply_patches

    apply_patches("cpu")
    from mindspeed_llm.checkpoints import RunCheckpoints, find_damage

    statuses = end_torchrun(tmp_path, save_seconds, patience_of_the_script(), number)
    assert statuses == ["3", "3"], (tmp_path / "log").read_text()[-3000:]
    last = RunCheckpoints(tmp_path / "save").latest()
    assert last is not None and find_damage(last) == []
    assert last.name == f"iter_{max(train_records(tmp_path / 'save' / 'run')):07d}"


@pytest.mark.parametrize(
    ("save_seconds", "patience"),
    [pytest.param(60, "2", marks=pytest.mark.long), pytest.param(45, None, marks=pytest.mark.long)],
    ids=str,
)
def test_with_the_default_shutdown_timeout_the_last_save_is_lost(tmp_path, save_seconds, patience):
    """torchrun (by default after 30 seconds) kills what still saves: nobody ends by itself, nothing is published.

    This is what the test above would see if the scripts did not ask for more.
    """
    assert end_torchrun(tmp_path, save_seconds, patience, signal.SIGTERM) == []
    left = [path.name for path in (tmp_path / "save").glob("iter_*")]
    assert all(name.endswith(".saving") for name in left), left
