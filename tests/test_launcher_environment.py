"""Variables of launchers: read into one value, and refused if they are invalid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.launcher_environment import (
    LauncherEnvironment,
    LauncherJob,
    environment_of_one_process,
    read_launcher_environment,
)

ROOT = Path(__file__).parents[1]


def test_a_process_without_a_launcher() -> None:
    assert read_launcher_environment({"PATH": "x"}) == LauncherEnvironment()


def test_every_variable() -> None:
    numbers = {"RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}
    elastic = {"RUN_ID": "none", "RESTART_COUNT": "3", "USE_AGENT_STORE": "True"}
    environment = numbers | {f"TORCHELASTIC_{name}": value for name, value in elastic.items()}
    environment |= {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1"}
    assert read_launcher_environment(environment) == LauncherEnvironment(
        5, 1, 2, 8, 2, True, 3, True, {"Slurm": LauncherJob("77", 1)}, 4
    )


def test_the_environment_is_read_at_the_time_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert read_launcher_environment().rank == 3


def test_all_variables_that_are_not_numbers_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        read_launcher_environment({"RANK": "-1", "WORLD_SIZE": "0", "LOCAL_RANK": "x", "GROUP_RANK": "²"})
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "RANK=-1",
        "LOCAL_RANK=x",
        "GROUP_RANK=²",
        "WORLD_SIZE=0",
    ]
    assert "a whole number of at least 1" in caught.value.problems[-1]


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_program_ends_with_status_2(value: str) -> None:
    command = [sys.executable, str(ROOT / "pretrain_gpt.py"), "--dry-run"]
    environment = {**os.environ, "WORLD_SIZE": value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"pretrain_gpt.py: error: WORLD_SIZE={value} in the env")


def test_a_separate_program_finds_the_package_and_is_no_rank() -> None:
    given = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1", "HOME": "x", "PYTHONPATH": "y"}
    assert environment_of_one_process(given) == {"HOME": "x", "PYTHONPATH": f"{ROOT}{os.pathsep}y"}
