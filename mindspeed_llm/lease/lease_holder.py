"""Identify the process that holds a lease, and find out whether it has ended or belongs to the same job."""

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
    """A process that holds a lease or is trying to take one.

    Attributes:
        host: host name of the machine.
        process: process id.
        process_start: clock ticks between the boot of the machine and the start of the process. The system uses a
            process id again, but not with the same start. None where there is no /proc.
        boot: random id of this boot of the kernel, because several machines may have the same host name.
        process_space: process namespace of the id; each container has its own.
        since: time at which it took the lease, UTC.
        command: name of the program.
        jobs: launcher → job.
        launch: random id that all attempts of one torchrun share; None without torchrun's store.
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
        # The file may be untrusted: no control characters of it reach a terminal.
        return "".join(letter if letter.isprintable() else "?" for letter in text)

    def is_gone(self, own: LeaseHolder) -> bool:
        """Return whether this process has certainly ended.

        Args:
            own: the calling process. Only a process on the same machine and in the same process namespace can know;
                for all others the result is False.
        """
        here = (own.host, own.boot, own.process_space)
        if None in here or here != (self.host, self.boot, self.process_space) or self.process_start is None:
            return False
        return not is_process_running(self.process, self.process_start)

    def is_earlier_attempt(self, own: LeaseHolder) -> bool:
        """Return whether this process was an earlier attempt of the job of `own`.

        A launcher ends an attempt before it starts the next one, so such a process does not write any more.

        Args:
            own: the calling process.
        """
        if own.launch is not None and own.launch == self.launch:
            return True
        # Two different torchruns may have been given the same --rdzv-id. Their launch ids differ then.
        unrelated = None not in (own.launch, self.launch)
        return any(
            self.jobs[name].id == job.id and self.jobs[name].attempt < job.attempt
            for name, job in own.jobs.items()
            if name in self.jobs and not (name == "torchrun" and unrelated)
        )

    def is_of_same_job(self, own: LeaseHolder) -> bool:
        """Return whether both processes have the same job id. This does not mean that one of them has ended.

        Args:
            own: the calling process.
        """
        return any(name in self.jobs and self.jobs[name].id == job.id for name, job in own.jobs.items())


def current_holder(launch: str | None = None) -> LeaseHolder:
    """Describe this process as the holder of a lease that it takes now.

    Args:
        launch: random id that all attempts of this torchrun share; None without torchrun.
    """
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
    """Return the clock ticks between the boot of the machine and the start of a process.

    Args:
        process: process id.

    Returns:
        Clock ticks; None if the process has ended, or where there is no /proc.
    """
    stat = _content(f"/proc/{process}/stat")
    if stat is None:
        return None
    # The name of the program, in parentheses, may contain spaces and parentheses.
    state, *fields = stat.rpartition(")")[2].split()
    # A zombie (Z) or dead (X) process has ended, although its parent has not waited for it yet.
    return None if state in ("Z", "X") else int(fields[18])


def is_process_running(process: int, start: int) -> bool:
    """Return whether a process is running on this machine.

    Args:
        process: process id.
        start: its start in clock ticks, from `process_start_ticks`. A process with the same id and another start is
            a different one.
    """
    if Path(f"/proc/{process}").exists():
        return process_start_ticks(process) == start
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user, which /proc may hide
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
