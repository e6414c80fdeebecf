"""Wait without a limit for the ranks that prepare something before a run starts, as long as they report progress.

    rank 0 (node-a)   works, reports every 30 s ──┐          ┌─▶ sets "over" when all working ranks have finished
    rank 1 (node-a)   waits for "over"            ├─▶ rank 0 ┤
    rank 2 (node-b)   works, reports every 30 s ──┤          └─▶ or when one has failed, or was silent for 5 minutes
    rank 3 (node-b)   waits for "over"            ┘

Either rank 0 works for the job, or the first rank of each machine works for its machine. No process group exists: the
ranks communicate through the store of the launcher.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_llm.devices import rendezvous
from mindspeed_llm.devices.rendezvous import RendezvousError
from mindspeed_llm.launcher_environment import read_launcher_environment

OVER, READERS = "over", "readers"
_works = itertools.count()


@dataclass(frozen=True)
class WorkTiming:
    """Intervals and limits of the wait, in seconds.

    Attributes:
        refresh: interval at which a working rank reports to the others.
        silence: time without a report after which a rank counts as lost.
        look: longest interval at which a waiting rank looks at the reports and at the end of the work.
        reading: time for all ranks to read the reason for the end of the job.
    """

    refresh: float = 30.0
    silence: float = 300.0
    look: float = 5.0
    reading: float = 20.0


TIMING = WorkTiming()


class WorkCancelledError(Exception):
    """Another rank has failed, so the work of this rank is not needed any more."""


class StartupWork:
    """Work of some ranks before a run starts, for which all other ranks wait. Every rank must create an object.

    Args:
        per_machine: whether the first rank of each machine works, instead of rank 0 for all machines.
        timing: intervals and limits.

    Attributes:
        works_here: whether this rank works.
        timing: intervals and limits.
    """

    def __init__(self, per_machine: bool, timing: WorkTiming = TIMING) -> None:
        self._launch = launch = read_launcher_environment()
        self.timing = timing
        self._is_leader = launch.rank == 0
        self.works_here = launch.local_rank == 0 if per_machine else self._is_leader
        self._workers = launch.machines if per_machine else 1
        self._own = (launch.machine or 0) if per_machine else 0
        several = launch.by_torchrun and launch.world_size > 1
        self._store: Any = None
        if several:
            prefix = f"startup work {next(_works)}"
            self._store = torch.distributed.PrefixStore(prefix, rendezvous.launcher_store())
        self._result: str | None = None
        self._beats = 0
        self._last_report = -float("inf")
        # Number of a working rank → its last report, and when it was first seen, by the clock of this rank.
        self._seen: dict[int, tuple[str, float]] = {}
        self._began = time.monotonic()

    def report(self, progress: str) -> None:
        """Report the progress of this rank. A working rank calls this at least every few seconds.

        Args:
            progress: the last step, for a message if this rank falls silent.

        Raises:
            WorkCancelledError: another rank has failed or was silent for too long.
        """
        if self._store is None:
            return
        now = time.monotonic()
        if now - self._last_report >= self.timing.refresh:
            self._last_report, self._beats = now, self._beats + 1
            values = {"host": socket.gethostname(), "beat": self._beats, "progress": progress}
            self._store.set(_report_key(self._own), json.dumps(values))
        if self._is_leader:
            self._lead()
        if self._store.check([OVER]):
            raise WorkCancelledError

    def finish(self, result: str | None) -> None:
        """Report that the work of this rank has ended.

        Args:
            result: the result for the ranks that this rank works for; None if the work has failed.
        """
        self._result = result
        if self._store is not None:
            self._store.set(_end_key(self._own), json.dumps(result))
            if self._is_leader:
                self._lead()

    def wait(self) -> str | None:
        """Wait until all working ranks have finished, or one has failed. Every rank calls this.

        Returns:
            The result of the rank that works for this one; None if a rank has failed, whose error the caller obtains
            by the next rendezvous.

        Raises:
            RendezvousError: a working rank was silent for too long. Raised on every rank.
        """
        if self._store is None:
            return self._result
        while not self._store.check([OVER]):
            if self._is_leader:
                with contextlib.suppress(WorkCancelledError):
                    self.report("finished; waiting for other machines")
            else:
                self._check_leader()
            # Not store.wait, whose timeouts torch logs as warnings. Short work, as with a cache, costs no second.
            time.sleep(min(self.timing.look, 0.02 + (time.monotonic() - self._began) / 10))
        problem = json.loads(self._store.get(OVER))
        if problem is None:
            return _parsed(self._store.get(_end_key(self._own))) if self._store.check([_end_key(self._own)]) else None
        self._let_others_read()
        raise RendezvousError(problem)

    def _check_leader(self) -> None:
        """Raise an error if rank 0 has not reported for too long: it cannot end the work any more."""
        problem = self._silence_of(0)
        if problem is None:
            return
        error = RendezvousError(problem)
        # The first rank of the machine of rank 0 is rank 0 itself, which cannot print the message.
        error.on_one_rank = self._launch.local_rank == (0 if self._launch.machine else 1)
        raise error

    def _lead(self) -> None:
        """End the work for all ranks when all working ranks have finished, or one has failed or is silent."""
        if self._store.check([OVER]):
            return
        open_workers = []
        for worker in range(self._workers):
            if not self._store.check([_end_key(worker)]):
                open_workers.append(worker)
            elif _parsed(self._store.get(_end_key(worker))) is None:
                self._store.set(OVER, json.dumps(None))
                return
        silent = [problem for worker in open_workers if (problem := self._silence_of(worker)) is not None]
        if silent or not open_workers:
            self._store.set(OVER, json.dumps("\n".join(silent) or None))

    def _silence_of(self, worker: int) -> str | None:
        """Return the message about a working rank that has not reported for too long; None if it has."""
        now, key = time.monotonic(), _report_key(worker)
        text = str(self._store.get(key), "utf-8") if self._store.check([key]) else ""
        before, since = self._seen.get(worker, ("", self._began))
        if text != before:
            self._seen[worker] = (text, now)
            return None
        if now - since < self.timing.silence:
            return None
        values = json.loads(text) if text else {"host": f"machine {worker}", "progress": "not started"}
        return (
            f"{values['host']}: has not reported for {self.timing.silence:g} s while it prepared the data (its last "
            f"report: {values['progress']}); look at the log and the storage of that machine"
        )

    def _let_others_read(self) -> None:
        """Wait until all ranks that still respond know the reason, because torchrun ends them with the first one."""
        self._store.add(READERS, 1)
        deadline = time.monotonic() + self.timing.reading
        while self._store.add(READERS, 0) < self._launch.world_size and time.monotonic() < deadline:
            time.sleep(min(self.timing.look, 1))


def _report_key(worker: int) -> str:
    return f"report {worker}"


def _end_key(worker: int) -> str:
    return f"end {worker}"


def _parsed(value: bytes) -> str | None:
    text: str | None = json.loads(value)
    return text
