"""A job on two machines: network namespaces with addresses of their own, gloo across, torchrun on each.

The long ones, in which ranks and machines die, are run by ci/several_machines.sh.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS
from tiny_runs import RUN, train_records, write_files
from two_machines import ADDRESSES, TwoMachines, unavailable_reason, wait_until

ROOT = Path(__file__).parents[1]
ITERATIONS = 30
SAVE_INTERVAL = 5
# Any start on two busy cores; only its bound matters.
SECONDS_TO_START = HANG_SECONDS
SECONDS_TO_FINISH = HANG_SECONDS
# What docs/architecture.md states: by then the survivors of a rank or machine that died have ended. Two seconds of it
# are their patience for the first error to be printed, the rest is Python taking itself down on a busy machine.
SECONDS_TO_END = 30

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=f"two machines: {unavailable_reason()}")

# The same lines as in examples/mcore: the machine's place in the job comes from the environment.
TUNE = f"""#!/usr/bin/env bash
set -euo pipefail
exec torchrun --nproc_per_node "$NPUS_PER_NODE" --nnodes "$NNODES" --node_rank "$NODE_RANK" \\
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" {ROOT}/pretrain_gpt.py "$@"
"""
# Figures that must not depend on where a run was cut.
EXACT = ("loss", "grad_norm", "learning_rate", "consumed_samples", "trained_tokens")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("data") / "alpaca")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[TwoMachines]:
    (tmp_path / "tune.sh").write_text(TUNE, "utf-8")
    with TwoMachines(tmp_path) as machines:
        yield machines


def start(machines: TwoMachines, node: str, data: Path, *flags: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start the run on one machine; both share one --save folder."""
    command = ["bash", "tune.sh", *RUN.split(), "--data-path", str(data), "--num-layers", "2", "--eval-iters", "0"]
    command += ["--train-iters", str(ITERATIONS), "--save", "checkpoint", "--save-interval", str(SAVE_INTERVAL), *flags]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return machines.start(node, command, machines.folder, PATH=path, NPUS_PER_NODE="1", **environment)


def logs(machines: TwoMachines) -> str:
    """The last logs of both."""
    return "\n".join(f"== {node}\n{machines.log(node)}" for node in ADDRESSES)


def iteration(machines: TwoMachines) -> int:
    """The last iteration that was logged."""
    metrics = machines.folder / "checkpoint" / "run" / "metrics.jsonl"
    lines = metrics.read_text("utf-8").splitlines() if metrics.exists() else []
    return max((json.loads(line).get("iteration", 0) for line in lines), default=0)


def statuses(machines: TwoMachines, processes: list[subprocess.Popen[bytes]], seconds: float) -> list[int]:
    """The processes' exit statuses, once all have ended."""
    wait_until(
        lambda: all(process.poll() is not None for process in processes), seconds, "the end", lambda: logs(machines)
    )
    return [process.returncode for process in processes]


def begin_and_reach(
    machines: TwoMachines, data: Path, wanted: int, **environment: str
) -> list[subprocess.Popen[bytes]]:
    """Start both machines and wait for an iteration."""
    processes = [start(machines, node, data, **environment) for node in ADDRESSES]
    wait_until(lambda: iteration(machines) >= wanted, SECONDS_TO_START, f"iteration {wanted}", lambda: logs(machines))
    return processes


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict]:
    """Figures of a run on two machines to which nothing happened, by iteration."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tune.sh").write_text(TUNE, "utf-8")
    with TwoMachines(folder) as machines:
        processes = [start(machines, node, data) for node in ADDRESSES]
        assert statuses(machines, processes, SECONDS_TO_START + SECONDS_TO_FINISH) == [0, 0], logs(machines)
        said = machines.log("node-a")
        assert "node-a  rank 0  1 × cpu (gloo)" in said and "node-b  rank 1  1 × cpu (gloo)" in said
        assert "iteration" not in machines.log("node-b"), "rank 0 speaks for the job"
    return train_records(folder / "checkpoint" / "run")


def assert_like(records: dict[int, dict], undisturbed: dict[int, dict]) -> None:
    """All iterations are there, with the figures of the run that nothing happened to."""
    assert list(range(1, ITERATIONS + 1)) == sorted(records)
    for number, record in records.items():
        assert {key: record[key] for key in EXACT} == {key: undisturbed[number][key] for key in EXACT}, number


def test_machines_with_different_data_end_together_and_are_named(machines: TwoMachines, data: Path) -> None:
    """Every machine holds a copy of its own; node-b's is another one. Nothing is trained."""
    other = write_files(machines.folder / "alpaca", seed=1)
    processes = [start(machines, "node-a", data), start(machines, "node-b", other)]
    assert all(statuses(machines, processes, SECONDS_TO_START))
    for node in ADDRESSES:  # each machine keeps a log of its own
        said = machines.log(node)
        assert "do not hold the same data" in said, said
        assert f"node-a (rank 0) has {data}_packed_manifest.json: " in said
        assert f"node-b (rank 1) has {other}_packed_manifest.json: " in said
    assert iteration(machines) == 0


def test_an_error_on_one_machine_is_reported_on_all(machines: TwoMachines, data: Path) -> None:
    processes = [start(machines, "node-a", data), start(machines, "node-b", machines.folder / "nothing")]
    assert all(statuses(machines, processes, SECONDS_TO_START))
    for node in ADDRESSES:
        assert "node-b (rank 1): " in machines.log(node) and "nothing_packed_input_ids" in machines.log(node)


@pytest.mark.long
def test_a_copy_of_the_data_on_each_machine_is_accepted(machines: TwoMachines, data: Path, undisturbed: dict) -> None:
    copies = machines.folder / "of node-b"
    shutil.copytree(data.parent, copies)
    processes = [start(machines, "node-a", data), start(machines, "node-b", copies / data.name)]
    assert statuses(machines, processes, SECONDS_TO_START + SECONDS_TO_FINISH) == [0, 0], logs(machines)
    assert_like(train_records(machines.folder / "checkpoint" / "run"), undisturbed)


@pytest.mark.long
def test_torchrun_resumes_after_a_rank_dies(machines: TwoMachines, data: Path, undisturbed: dict) -> None:
    processes = begin_and_reach(machines, data, SAVE_INTERVAL + 3, PET_MAX_RESTARTS="2")
    ranks = [number for number, line in machines.processes("node-b").items() if "torchrun" not in line]
    for rank in ranks:
        os.kill(rank, signal.SIGKILL)
    assert ranks and statuses(machines, processes, SECONDS_TO_START + SECONDS_TO_FINISH) == [0, 0], logs(machines)
    assert "resuming from" in machines.log("node-a")
    assert_like(train_records(machines.folder / "checkpoint" / "run"), undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("dead", list(ADDRESSES))
def test_a_dead_machine_ends_the_job_and_a_restart_resumes(
    machines: TwoMachines, data: Path, undisturbed: dict, dead: str
) -> None:
    processes = dict(zip(ADDRESSES, begin_and_reach(machines, data, SAVE_INTERVAL + 3), strict=True))
    machines.kill(dead)
    survivor = processes[next(node for node in ADDRESSES if node != dead)]
    took = wait_until(lambda: survivor.poll() is not None, SECONDS_TO_END, "the survivor", lambda: logs(machines))
    print(f"{dead} died, the other machine ended {took:.1f} s later with status {survivor.returncode}")
    assert survivor.returncode != 0
    again = [start(machines, node, data) for node in ADDRESSES]
    assert statuses(machines, again, SECONDS_TO_START + SECONDS_TO_FINISH) == [0, 0], logs(machines)
    assert "resuming from" in machines.log("node-a")
    assert_like(train_records(machines.folder / "checkpoint" / "run"), undisturbed)


@pytest.mark.long
def test_an_unresponsive_machine_is_detected_within_the_timeout(machines: TwoMachines, data: Path) -> None:
    """Its power is gone: no connection is closed, so only --distributed-timeout-minutes can tell."""
    flags = ("--distributed-timeout-minutes", "1", "--train-iters", "3000")
    processes = [start(machines, node, data, *flags) for node in ADDRESSES]
    wait_until(lambda: iteration(machines) >= 8, SECONDS_TO_START, "iteration 8", lambda: logs(machines))
    machines.unplug("node-b")
    machines.kill("node-b")
    took = wait_until(lambda: processes[0].poll() is not None, 60 + SECONDS_TO_END, "node-a", lambda: logs(machines))
    print(f"node-b fell silent, node-a ended {took:.1f} s later with status {processes[0].returncode}")
    assert processes[0].returncode != 0


# A job of one machine: what torchrun is told then.
ALONE = {"NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
LASTING = ("--train-iters", "3000", "--save-interval", "2000")


def start_alone(machines: TwoMachines, node: str, data: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start a job of its own on one machine, into the --save folder that both see."""
    return start(machines, node, data, *flags, **ALONE)


def holder_of(machines: TwoMachines) -> int:
    """Process id of the rank that holds the lease of --save."""
    [lease] = (machines.folder / "checkpoint").glob("lease.*.json")
    return int(json.loads(lease.read_text("utf-8"))["holder"]["process"])


def files_of(folder: Path) -> dict[str, int]:
    """Every file but the lease, with its size."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("lease")
    }


@pytest.mark.long
def test_two_jobs_do_not_write_into_one_folder(machines: TwoMachines, data: Path) -> None:
    """The second is refused within two refreshes of the first one's lease, on each of its ranks; the first goes on."""
    first = start_alone(machines, "node-a", data, *LASTING)
    wait_until(lambda: iteration(machines) >= 3, SECONDS_TO_START, "iteration 3", lambda: machines.log("node-a"))
    before, rank = set(files_of(machines.folder / "checkpoint")), holder_of(machines)
    second = start_alone(machines, "node-b", data)
    assert statuses(machines, [second], SECONDS_TO_START) == [1], "torchrun's own status"
    said = machines.log("node-b")
    assert f"checkpoint: another run is writing there: pretrain_gpt.py, process {rank} on node-a, since 20" in said
    assert "exitcode  : 2" in said and "Traceback" not in said.split("torch/distributed")[0]
    assert set(files_of(machines.folder / "checkpoint")) == before and first.poll() is None
    os.kill(rank, signal.SIGTERM)
    statuses(machines, [first], SECONDS_TO_FINISH)
    third = start_alone(machines, "node-b", data, "--train-iters", str(iteration(machines) + 2))
    assert statuses(machines, [third], SECONDS_TO_START + SECONDS_TO_FINISH) == [0], machines.log("node-b")
    assert "taking over" not in machines.log("node-b") and "resuming from" in machines.log("node-b")


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_an_unresponsive_job_is_replaced_by_another(machines: TwoMachines, data: Path, how: str) -> None:
    """After 60 s of silence, which the other machine says that it waits for. One that was suspended meanwhile ends
    before it writes another figure."""
    first = start_alone(machines, "node-a", data, "--train-iters", "3000")
    wait_until(
        lambda: iteration(machines) >= SAVE_INTERVAL + 2, SECONDS_TO_START, "a checkpoint", lambda: logs_of(machines)
    )
    rank = holder_of(machines)
    os.kill(rank, signal.SIGSTOP)
    done = iteration(machines)
    if how == "killed":
        machines.kill("node-a")
    second = start_alone(machines, "node-b", data, "--train-iters", "3000", "--save-interval", "3000")
    wait_until(
        lambda: "taking over after 60 s without a refresh" in machines.log("node-b"),
        SECONDS_TO_START,
        "the line that it waits",
    )
    took = wait_until(lambda: "taken over from" in machines.log("node-b"), 90, "the lease", lambda: logs_of(machines))
    assert 55 < took < 75 and f"process {rank} on node-a" in machines.log("node-b")
    wait_until(lambda: "resuming from" in machines.log("node-b"), SECONDS_TO_START, "the start")
    if how == "suspended":
        os.kill(rank, signal.SIGCONT)
        assert statuses(machines, [first], 60) == [1]
        said = machines.log("node-a")
        assert "this run has lost its lease (it is now held by pretrain_gpt.py, process" in said and "on node-b" in said
        assert "exitcode  : 2" in said and f"iteration {done + 2:>6}/" not in said.split("has lost its lease")[1]
        assert second.poll() is None, "the one that has the folder goes on"
    assert not list((machines.folder / "checkpoint").glob("iter_*.saving"))


@pytest.mark.long
def test_torchrun_restarts_a_rank_zero_that_was_killed_at_once(machines: TwoMachines, data: Path) -> None:
    job = start(machines, "node-a", data, **ALONE, PET_MAX_RESTARTS="1")
    wait_until(lambda: iteration(machines) >= SAVE_INTERVAL + 2, SECONDS_TO_START, "a checkpoint")
    os.kill(holder_of(machines), signal.SIGKILL)
    assert statuses(machines, [job], SECONDS_TO_START + SECONDS_TO_FINISH) == [0], machines.log("node-a")
    said = machines.log("node-a")
    assert "taken over from" in said and "taking over after" not in said and "resuming from" in said


def logs_of(machines: TwoMachines) -> str:
    """The logs of the machines that were started."""
    return "\n".join(f"== {node}\n{machines.log(node)}" for node in ADDRESSES if machines.has_log(node))
