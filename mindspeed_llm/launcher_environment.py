"""Read the environment variables that the launcher and the job scheduler set for this process.

    torchrun   RANK, LOCAL_RANK, GROUP_RANK (number of the machine), WORLD_SIZE, LOCAL_WORLD_SIZE,
               GROUP_WORLD_SIZE (number of machines), TORCHELASTIC_*
    Slurm      SLURM_JOB_ID, SLURM_RESTART_COUNT
    Volcano    MA_VJ_NAME

No other module reads these variables. torch itself reads MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.errors import ConfigError

# Launcher or scheduler → the variables with the job id and the number of restarts. Volcano does not count restarts.
LAUNCHERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    "Slurm": ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    "Volcano": ("MA_VJ_NAME", None),
}


def planned_ranks(ranks: int) -> dict[str, str]:
    """Return the environment variables of one process that plans a job (--dry-run).

    Args:
        ranks: number of ranks of the planned job.
    """
    return {"WORLD_SIZE": str(ranks)}


# torchrun's default job id. Many jobs share it, so that it does not identify a job.
NO_ID = "none"


@dataclass(frozen=True)
class LauncherJob:
    """The job of this process, as a launcher or a scheduler identifies it.

    Attributes:
        id: job id.
        attempt: number of restarts so far.
    """

    id: str
    attempt: int = 0


@dataclass(frozen=True)
class LauncherEnvironment:
    """How this process was started. The defaults describe a process without a launcher.

    Attributes:
        rank: rank in the job, from 0.
        local_rank: rank on its machine, from 0.
        machine: number of the machine, from 0; None if the launcher does not set it.
        world_size: number of ranks of the job.
        local_world_size: number of ranks on this machine.
        by_torchrun: whether torchrun started the process.
        attempt: number of restarts by torchrun so far.
        has_persistent_store: whether torchrun keeps one store for all attempts.
        jobs: name of the launcher or scheduler → job.
        machines: number of machines of the job.
    """

    rank: int = 0
    local_rank: int = 0
    machine: int | None = None
    world_size: int = 1
    local_world_size: int = 1
    by_torchrun: bool = False
    attempt: int = 0
    has_persistent_store: bool = False
    jobs: dict[str, LauncherJob] = field(default_factory=dict)
    machines: int = 1


def read_launcher_environment(environment: Mapping[str, str] = os.environ) -> LauncherEnvironment:
    """Read how this process was started.

    Args:
        environment: environment variables; by default those of this process.

    Raises:
        ConfigError: a variable is not a number or is out of range. The error lists all such variables.
    """
    problems: list[str] = []

    def number(name: str, default: int, minimum: int = 0) -> int:
        text = environment.get(name, str(default))
        # isdigit() alone accepts digits such as "²", which int() refuses.
        if text.isascii() and text.isdigit() and int(text) >= minimum:
            return int(text)
        problems.append(
            f"{name}={text} in the environment: not a whole number of at least {minimum}; correct or unset it"
        )
        return default

    launch = LauncherEnvironment(
        rank=number("RANK", 0),
        local_rank=number("LOCAL_RANK", 0),
        machine=number("GROUP_RANK", 0) if "GROUP_RANK" in environment else None,
        world_size=(world_size := number("WORLD_SIZE", 1, minimum=1)),
        local_world_size=(local_world_size := number("LOCAL_WORLD_SIZE", 1, minimum=1)),
        by_torchrun="TORCHELASTIC_RUN_ID" in environment,
        attempt=number("TORCHELASTIC_RESTART_COUNT", 0),
        has_persistent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True),
        jobs=launcher_jobs(environment),
        # Not every launcher counts the machines.
        machines=number("GROUP_WORLD_SIZE", max(1, world_size // local_world_size), minimum=1),
    )
    if problems:
        raise ConfigError(problems)
    return launch


def environment_of_one_process(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a program of this package in one process, which must not take itself for a rank.

    Args:
        environment: environment variables; by default those of this process.
    """
    of_a_rank = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
    kept = {name: value for name, value in environment.items() if not name.startswith(of_a_rank)}
    return {**kept, **package_path(environment)}


def package_path(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return PYTHONPATH with which another Python finds this package, also in a checkout that is not installed.

    Args:
        environment: environment variables; by default those of this process.
    """
    given = environment.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [given])])}


def launcher_jobs(environment: Mapping[str, str]) -> dict[str, LauncherJob]:
    """Return launcher or scheduler → job, for each one whose variables name a job.

    Args:
        environment: environment variables.
    """
    jobs = {}
    for name, (id_variable, attempt_variable) in LAUNCHERS.items():
        job_id = environment.get(id_variable, "")
        if job_id in ("", NO_ID):
            continue
        attempt = environment.get(attempt_variable or "", "0")
        jobs[name] = LauncherJob(job_id, int(attempt) if attempt.isdecimal() else 0)
    return jobs
