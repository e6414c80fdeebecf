"""The process that holds a lease: how it is named, whether it is gone, and whether it was started by the same job."""

from __future__ import annotations

import datetime
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.launcher_environment import LauncherJob, read_launcher_environment


@dataclass(frozen=True)
class LeaseHolder:
    """A process that holds a lease, or wants one.

    Attributes:
        host: name of the machine.
        process: its id there.
        process_start: clock ticks from the machine's start to the process's: an id is used again, the pair is not.
        boot: id of this start of the machine's kernel. Different machines may have one host name.
        process_space: the namespace that the id belongs to; each container has its own.
        since: when it took the lease, UTC.
        command: name of the program.
        jobs: launcher → job.
        launch: a random word that all attempts of one torchrun share; None without torchrun's store.
    """

    host: str
    process: int
    process_start: int | None
    boot: str | None
    process_space: str | None
    since: str
    command: str
    jobs: dict[str, LauncherJob] = field(default_factory=dict)
    launch: str | None = None

    def __str__(self) -> str:
        job = "".join(f", {name} job {job.id}, attempt {job.attempt}" for name, job in self.jobs.items())
        text = f"{self.command}, process {self.process} on {self.host}{job}, since {self.since}"
        return "".join(letter if letter.isprintable() else "?" for letter in text)  # the file may be a stranger's

    def is_gone(self, own: LeaseHolder) -> bool:
        """Whether this process has certainly ended. Only a process of the same machine and namespace can tell."""
        here = (own.host, own.boot, own.process_space)
        if None in here or here != (self.host, self.boot, self.process_space) or self.process_start is None:
            return False
        return not is_process_running(self.process, self.process_start)

    def is_earlier_attempt(self, own: LeaseHolder) -> bool:
        """Whether this was an attempt of own's job before it was restarted: the launcher has ended it by then."""
        if own.launch is not None and own.launch == self.launch:
            return True
        unrelated = None not in (own.launch, self.launch)  # two torchruns may have been given one id
        return any(
            self.jobs[name].id == job.id and self.jobs[name].attempt < job.attempt
            for name, job in own.jobs.items()
            if name in self.jobs and not (name == "torchrun" and unrelated)
        )

    def is_of_same_job(self, own: LeaseHolder) -> bool:
        """Whether a launcher gives both the same job id, which does not say that one of them has ended."""
        return any(name in self.jobs and self.jobs[name].id == job.id for name, job in own.jobs.items())


def current_holder(launch: str | None = None) -> LeaseHolder:
    """This process as the holder of a lease that it takes now."""
    return LeaseHolder(
        host=socket.gethostname(),
        process=os.getpid(),
        process_start=process_start_ticks(os.getpid()),
        boot=_content("/proc/sys/kernel/random/boot_id"),
        process_space=_process_space(),
        since=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        command=Path(sys.argv[0]).name or "python",
        jobs=read_launcher_environment().jobs,
        launch=launch,
    )


def process_start_ticks(process: int) -> int | None:
    """Clock ticks from the machine's start to the process's; None if it has ended, or where there is no /proc."""
    stat = _content(f"/proc/{process}/stat")
    if stat is None:
        return None
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in ("Z", "X") else int(fields[18])  # ended, though nobody has waited for it yet


def is_process_running(process: int, start: int) -> bool:
    """Whether the process with this id that began at `start` is running on this machine."""
    if Path(f"/proc/{process}").exists():
        return process_start_ticks(process) == start
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's, which /proc may hide
        return True
    return True


def _process_space() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _content(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
