"""examples/launch: what each node of a Slurm or Volcano job hands to the tune script, with stubs for their programs."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from script_stubs import GIVEN
from shell_flags import as_mapping
from time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "examples" / "launch"
TUNE = "examples/mcore/qwen25/tune_qwen25_7b_4k_full_pack.sh"
PLACE = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPUS_PER_NODE")

# srun starts the command once for each node, as Slurm's does with one task on each.
SRUN = """
nodes = int(os.environ["SLURM_NNODES"])
command = [word for word in sys.argv[1:]][sys.argv[1:].index("bash"):]
running = [subprocess.Popen(command, env=os.environ | {"SLURM_NODEID": str(n)}) for n in range(nodes)]
sys.exit(max(one.wait() for one in running))
"""
SCONTROL = """
if sys.argv[1] == "show":
    print("localhost", flush=True)
    time.sleep(0.2)  # whoever reads the first line only is gone by now
    print("second", flush=True)
else:
    open("requeued", "a").write(" ".join(sys.argv[1:]))
"""
TORCHRUN = """
json.dump(sys.argv, open("torchrun." + os.environ["NODE_RANK"], "w"))
sys.exit(int(os.environ.get("STUB_STATUS", "0")))
"""
# The check of the command, whose paths do not exist.
CHECK = "assert sys.argv[-1] == '--check-only'"
# torchrun as far as SIGTERM goes: the ranks take their time to save.
PATIENT_TORCHRUN = """
def stop(number, frame):
    time.sleep(1)
    print("saved", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
open("torchrun.up", "w")
time.sleep(900)
"""


def is_shell(path: Path) -> bool:
    return path.suffix in (".sh", ".sbatch")


def stubs(folder: Path, **programs: str) -> dict[str, str]:
    """An environment in whose PATH the programs come first, and without a place in any job."""
    for name, text in programs.items():
        file = folder / "stubs" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!{sys.executable}\nimport json, os, signal, subprocess, sys, time\n{text}", "utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in PLACE and not name.startswith(("SLURM_", "VC_")) and name != "WORLD_SIZE"
    }
    return kept | GIVEN | {"PATH": f"{folder / 'stubs'}:{os.environ['PATH']}"}


def checkout(folder: Path) -> Path:
    """A folder with examples/ in it, to run in: logs/ come to lie there."""
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def place_of(folder: Path, rank: int) -> list[str | None]:
    """nnodes, node_rank, master_addr, master_port, nproc_per_node, as torchrun was given them on a node."""
    flags = as_mapping(json.loads((folder / f"torchrun.{rank}").read_text("utf-8")))
    return [flags[name] for name in ("nnodes", "node_rank", "master_addr", "master_port", "nproc_per_node")]


def run(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("ci", "examples")
    for path in (ROOT / folder).rglob("*.s*")
    if is_shell(path)
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_bash_and_stops_at_the_first_error(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert text.startswith("#!/usr/bin/env bash\n#") and "\nset -euo pipefail\n" in text
    parsed = subprocess.run(["bash", "-n", str(ROOT / name)], capture_output=True, text=True, check=False)
    assert parsed.returncode == 0 and not parsed.stderr, parsed.stderr
    code = re.sub(r"#.*|'[^']*'", "", text)
    assert not re.search(r"(^|[;&|(])\s*eval\s|`", code, re.MULTILINE), "no eval, no backquotes"
    unquoted = re.findall(r"^\s*(?:cd|rm|mkdir|mv|cp|source|\[) [^\"\n#]*\$\w+", text, re.MULTILINE)
    assert not unquoted, "a path with a blank would fall apart"


def test_the_scripts_are_found() -> None:
    assert {"ci/npu_contract.sh", "examples/launch/tune.sbatch", "examples/quickstart.sh", TUNE} <= set(SCRIPTS)


def slurm(folder: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = stubs(checkout(folder), srun=SRUN, scontrol=SCONTROL, torchrun=TORCHRUN, python=CHECK)
    job = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "localhost,second"}
    return run(["bash", "examples/launch/tune.sbatch", TUNE, *flags], folder, environment | job | more)


def test_each_node_of_a_slurm_job_gets_its_rank(tmp_path: Path) -> None:
    done = slurm(tmp_path, "--train-iters", "7", NPUS_PER_NODE="4", DATA_PATH="of the node")
    assert done.returncode == 0, done.stderr
    assert place_of(tmp_path, 0) == ["2", "0", "localhost", "23456", "4"]
    assert place_of(tmp_path, 1) == ["2", "1", "localhost", "23456", "4"]
    flags = as_mapping(json.loads((tmp_path / "torchrun.1").read_text("utf-8")))
    assert flags["train-iters"] == "7" and flags["data-path"] == "of the node"
    assert not (tmp_path / "requeued").exists()
    assert sorted(log.name[-9:] for log in (tmp_path / "logs").iterdir()) == ["node0.log", "node1.log"]


def test_a_failed_slurm_job_is_requeued(tmp_path: Path) -> None:
    assert slurm(tmp_path, STUB_STATUS="1", SLURM_RESTART_COUNT="1", MAX_REQUEUES="2").returncode == 1
    assert (tmp_path / "requeued").read_text("utf-8") == "requeue 123456"


def test_a_slurm_job_is_requeued_a_limited_number_of_times(tmp_path: Path) -> None:
    done = slurm(tmp_path, STUB_STATUS="1", SLURM_RESTART_COUNT="2", MAX_REQUEUES="2")
    assert done.returncode == 1 and "not requeued" in done.stdout
    assert not (tmp_path / "requeued").exists()


def test_each_node_of_a_volcano_job_gets_its_rank(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    environment = stubs(checkout(tmp_path), torchrun=TORCHRUN, python=CHECK)
    job = yaml.safe_load((LAUNCH / "tune_volcano.yaml").read_text("utf-8"))
    (task,) = job["spec"]["tasks"]
    # What Volcano's plugins set for a task of this name.
    volcano = {f"VC_{task['name'].upper()}_HOSTS": "localhost,tune-node-1.tune", "VC_NODE_NUM": str(task["replicas"])}
    (container,) = task["template"]["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"]}
    for rank in range(task["replicas"]):
        variables = environment | volcano | given | {"VC_TASK_INDEX": str(rank)}
        done = run([*container["command"], *container["args"]], tmp_path, variables)
        assert done.returncode == 0, done.stderr
        assert place_of(tmp_path, rank) == ["2", str(rank), "localhost", "6000", "8"]
    assert set(job["spec"]["plugins"]) == {"env", "svc"} and job["spec"]["minAvailable"] == task["replicas"]
    restarts = {one["event"] for one in job["spec"]["policies"] if one["action"] == "RestartJob"}
    assert restarts == {"PodEvicted", "PodFailed"} and task["template"]["spec"]["restartPolicy"] == "Never"


def test_existing_variables_are_not_overwritten(tmp_path: Path) -> None:
    environment = stubs(checkout(tmp_path), torchrun=TORCHRUN, python=CHECK)
    given = {"NNODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "7", "NPUS_PER_NODE": "16"}
    assert run(["bash", "examples/launch/on_each_node.sh", TUNE], tmp_path, environment | given).returncode == 0
    assert place_of(tmp_path, 2) == ["3", "2", "localhost", "7", "16"]


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        ("nothing.sh", {}, "give a tune script that exists"),
        (TUNE, {"SLURM_JOB_ID": "1"}, "run it by srun"),
        (TUNE, {"VC_TASK_INDEX": "0"}, "svc plugin"),
        (TUNE, {"MASTER_ADDR": "no.such.host.invalid", "SECONDS_FOR_NAMES": "1"}, "is not known here"),
    ],
)
def test_missing_inputs_are_reported(script: str, variables: dict[str, str], message: str, tmp_path: Path) -> None:
    environment = stubs(checkout(tmp_path), torchrun=TORCHRUN, python=CHECK)
    done = run(["bash", "examples/launch/on_each_node.sh", script], tmp_path, environment | variables)
    assert done.returncode == 2 and message in done.stderr


def stopped_training(folder: Path, stop: Callable[[subprocess.Popen[str]], None], *command: str) -> tuple[int, str]:
    """Start a script whose torchrun takes its time to save, stop it, and return its status and output."""
    environment = stubs(checkout(folder), torchrun=PATIENT_TORCHRUN, python=CHECK)
    with subprocess.Popen(
        ["bash", *command], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as script:
        deadline = time.monotonic() + HANG_SECONDS
        while not (folder / "torchrun.up").exists() and script.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        stop(script)
        said, _ = script.communicate(timeout=HANG_SECONDS)
    return script.returncode, said


def test_ctrl_c_in_a_tune_script_keeps_what_is_printed_while_saving(tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole process group, tee included."""
    _, said = stopped_training(tmp_path, lambda script: os.killpg(script.pid, signal.SIGINT), TUNE)
    (log,) = (tmp_path / "logs").iterdir()
    assert "saved" in said and "saved" in log.read_text("utf-8")


def test_sigterm_reaches_torchrun_and_the_script_waits_for_the_save(tmp_path: Path) -> None:
    status, said = stopped_training(
        tmp_path, lambda script: script.send_signal(signal.SIGTERM), "examples/launch/on_each_node.sh", TUNE
    )
    assert "saved" in said, "what the ranks print after the signal still arrives"
    assert status == 5, "the status is torchrun's own"
    (log,) = (tmp_path / "logs").iterdir()
    assert "saved" in log.read_text("utf-8")
