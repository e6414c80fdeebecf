"""What the launcher and the scheduler of a job tell this process, through variables of the environment.

    torchrun   RANK, LOCAL_RANK, GROUP_RANK (the machine), WORLD_SIZE, LOCAL_WORLD_SIZE, TORCHELASTIC_*
    Slurm      SLURM_JOB_ID, SLURM_RESTART_COUNT
    Volcano    MA_VJ_NAME

This is the only module that reads them. MASTER_ADDR and MASTER_PORT are left to torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from mindspeed_llm.errors import ConfigError

# Who started the job: the variables of its id and of its number of restarts. A Volcano job does not count them.
LAUNCHERS = {
    "torchrun": ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
    "Slurm": ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    "Volcano": ("MA_VJ_NAME", None),
}
# torchrun's id of a job for which none was given: that of many jobs.
NO_ID = "none"


@dataclass(frozen=True)
class LauncherJob:
    """What a launcher or a scheduler says of the job that a process belongs to.

    Attributes:
        id: the job's.
        attempt: restarts so far.
    """

    id: str
    attempt: int = 0


@dataclass(frozen=True)
class LauncherEnvironment:
    """How this process was started. The defaults are those of a process without a launcher.

    Attributes:
        rank: its number in the job.
        local_rank: its number on its machine.
        machine: number of its machine; None where the launcher does not tell.
        world_size: ranks of the job.
        local_world_size: ranks of its machine.
        by_torchrun: torchrun started it.
        attempt: restarts by torchrun so far.
        has_lasting_store: torchrun keeps one store for all attempts.
        jobs: launcher → job.
    """

    rank: int = 0
    local_rank: int = 0
    machine: int | None = None
    world_size: int = 1
    local_world_size: int = 1
    by_torchrun: bool = False
    attempt: int = 0
    has_lasting_store: bool = False
    jobs: dict[str, LauncherJob] = field(default_factory=dict)


def read_launcher_environment(environment: Mapping[str, str] = os.environ) -> LauncherEnvironment:
    """Read how this process was started.

    Raises:
        ConfigError: a variable holds no number, or one that cannot be; all of them together.
    """
    problems: list[str] = []

    def number(name: str, default: int, least: int = 0) -> int:
        text = environment.get(name, str(default))
        if text.isascii() and text.isdigit() and int(text) >= least:
            return int(text)
        problems.append(f"{name}={text} in the environment: not a whole number from {least} up; correct or unset it")
        return default

    launch = LauncherEnvironment(
        rank=number("RANK", 0),
        local_rank=number("LOCAL_RANK", 0),
        machine=number("GROUP_RANK", 0) if "GROUP_RANK" in environment else None,
        world_size=number("WORLD_SIZE", 1, least=1),
        local_world_size=number("LOCAL_WORLD_SIZE", 1, least=1),
        by_torchrun="TORCHELASTIC_RUN_ID" in environment,
        attempt=number("TORCHELASTIC_RESTART_COUNT", 0),
        has_lasting_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == str(True),
        jobs=launcher_jobs(environment),
    )
    if problems:
        raise ConfigError(problems)
    return launch


def launcher_jobs(environment: Mapping[str, str]) -> dict[str, LauncherJob]:
    """The jobs that the variables of launchers name."""
    jobs = {}
    for name, (id_variable, attempt_variable) in LAUNCHERS.items():
        job_id = environment.get(id_variable, "")
        if job_id in ("", NO_ID):
            continue
        attempt = environment.get(attempt_variable or "", "0")
        jobs[name] = LauncherJob(job_id, int(attempt) if attempt.isdecimal() else 0)
    return jobs
