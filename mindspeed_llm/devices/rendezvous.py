"""Rendezvous of all ranks before they create process groups: each rank reports its state, data and versions.

Machines may differ: the data may be missing or different on one of them, or the checkpoint directory not mounted. Each
rank sends its RankInfo through the launcher's store (torchrun's, on MASTER_ADDR). Rank 0 collects them and sends the
complete list to all ranks:

    rank 0, node-a   data 3f2a…   ─┐
    rank 1, node-a   data 3f2a…   ─┼─▶  every rank has all four: node-b differs, and each rank ends with the same error
    rank 2, node-b   data 91cc…   ─┤
    rank 3, node-b   data 91cc…   ─┘

A problem on one machine therefore ends the job within seconds, with the name of the machine. Without the rendezvous the
other ranks would wait for the rank that ended until a collective times out.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import json
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mindspeed_llm.errors import UserError
from mindspeed_llm.launcher_environment import read_launcher_environment

# Timeout of the rendezvous. torchrun starts all ranks within seconds of each other, but opening large data on a slow
# disk may take minutes. With --max-restarts each attempt of the other machines waits this long for a lost machine.
PATIENCE = datetime.timedelta(minutes=5)
# torchrun's agent ends all ranks of its machine when one of them ends, so a failed rank first waits until all others
# have read the error.
TIME_TO_READ = datetime.timedelta(seconds=20)
EVERYWHERE = "every machine"

_meetings = itertools.count()


@dataclass(frozen=True)
class RankInfo:
    """Information that a rank sends to all other ranks.

    Attributes:
        rank: global rank.
        host: name of its machine.
        device: description of its device, such as 'npu Ascend910B3 (hccl)'.
        versions: library → version.
        data: path on this machine and hash of each data file, by a name that does not depend on the machine.
        start: the checkpoint or the weights from which the rank would start.
        unchecked: data files whose hash was not compared within the time limit.
        failed: the error that occurred during preparation, or None.
    """

    rank: int
    host: str
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, tuple[str, str]] = field(default_factory=dict)
    start: str = ""
    unchecked: list[str] = field(default_factory=list)
    failed: str | None = None


class RendezvousError(UserError):
    """A rank failed during preparation, or did not report in time. Raised on every rank.

    Args:
        message: the errors, one per line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Each machine keeps a log, and each log needs the reason for the end of the job.
        self.on_one_rank = is_first_rank_of_machine()


def current_rank() -> int:
    """Return the global rank of this process, which is known before process groups exist."""
    return read_launcher_environment().rank


def is_first_rank_of_machine() -> bool:
    """Return whether this is the first rank of its machine, which prints the messages of the machine."""
    return read_launcher_environment().local_rank == 0


@functools.cache
def launcher_store() -> Any:
    """Return the key-value store that torchrun provides for the job, with keys of the current attempt only.

    Every call returns the same object.
    """
    # With a master address, torchrun keeps one store for all attempts (--max-restarts). A rank must not read the
    # addresses of ranks of an earlier attempt.
    store, _, _ = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
    return torch.distributed.PrefixStore(f"attempt {read_launcher_environment().attempt}", store)


def launch_token() -> str | None:
    """Return a random token that all attempts of this torchrun share; None if it keeps no store for all attempts.

    The id of a job cannot distinguish an earlier attempt from another job: torchrun's default id is the same for all
    jobs, and scripts use a fixed id.
    """
    if not read_launcher_environment().has_lasting_store:
        return None
    store = launcher_store()
    while isinstance(store, torch.distributed.PrefixStore):  # torch adds another prefix per attempt
        store = store.underlying_store
    return str(store.compare_set("mindspeed_llm launch", "", uuid.uuid4().hex), "utf-8")


def exchange_rank_info(own: RankInfo, timeout: datetime.timedelta = PATIENCE) -> list[RankInfo]:
    """Exchange the RankInfo of all ranks that torchrun started. All ranks must call this function.

    Without torchrun, or with one rank, it returns only `own`.

    Args:
        own: the information of this rank.
        timeout: maximum time to wait for the other ranks, see `rendezvous_timeout`.

    Returns:
        The information of every rank, in the order of ranks.

    Raises:
        RendezvousError: A rank failed, or did not report in time.
    """
    launch = read_launcher_environment()
    if launch.by_torchrun and launch.world_size > 1:
        # Every rank counts its calls, so that each call has separate keys.
        store = torch.distributed.PrefixStore(f"meeting {next(_meetings)}", launcher_store())
        ranks = _exchange(store, own, launch.world_size, timeout)
    else:
        store, ranks = None, [own]
    failed = {info.rank: info.failed for info in ranks if info.failed is not None}
    if failed:
        if store is not None:
            _wait_for_readers(store)
        lines = group_by_machine(ranks, failed)
        raise RendezvousError("\n".join(f"{machines}: {error}" for machines, error in lines))
    return ranks


def rendezvous_timeout(minutes: float) -> datetime.timedelta:
    """Return the timeout of the rendezvous: PATIENCE, or --distributed-timeout-minutes if that is less."""
    return min(PATIENCE, datetime.timedelta(minutes=minutes))


@contextlib.contextmanager
def report_startup_errors(minutes: float, busy: datetime.timedelta = datetime.timedelta(0)) -> Iterator[None]:
    """Report an error inside the context to all other ranks, so that none of them waits for this rank.

    Args:
        minutes: value of --distributed-timeout-minutes.
        busy: how much longer than this rank the other ranks may work inside the context.

    Raises:
        UserError: The error of the context, if it is the same on all ranks.
        RendezvousError: The errors of all ranks, if some rank has another error or none.
    """
    try:
        yield
    except RendezvousError:  # all ranks have it already
        raise
    # Wide, because the other ranks must not wait for this rank after a defect of the program either.
    except Exception as error:
        is_user_error = isinstance(error, UserError)
        message = str(error) if is_user_error else f"{type(error).__name__}: {error}"
        try:
            exchange_rank_info(
                RankInfo(current_rank(), socket.gethostname(), failed=message), rendezvous_timeout(minutes) + busy
            )
        except RendezvousError as of_all_ranks:
            # A defect keeps its traceback on the rank where it occurred.
            if is_user_error and str(of_all_ranks) != f"{EVERYWHERE}: {message}":
                raise of_all_ranks from None
        if isinstance(error, UserError):
            error.on_one_rank = is_first_rank_of_machine()
        raise


def group_by_machine(ranks: Sequence[RankInfo], values: Mapping[int, str]) -> list[tuple[str, str]]:
    """Group ranks with equal values by machine: ('node-a (ranks 0–3)', value), in the order of ranks.

    Args:
        ranks: the information of every rank.
        values: rank → value. Ranks may be missing.

    Returns:
        (machines with their ranks, value) for each value; EVERYWHERE for the machines if all ranks have the same value.
    """
    hosts: dict[str, dict[str, list[int]]] = {}
    for info in ranks:
        if info.rank in values:
            hosts.setdefault(values[info.rank], {}).setdefault(info.host, []).append(info.rank)
    machines_of = {
        value: ", ".join(f"{host} ({format_ranks(numbers)})" for host, numbers in ranks_of.items())
        for value, ranks_of in hosts.items()
    }
    if len(machines_of) == 1 and len(values) == len(ranks):
        return [(EVERYWHERE, value) for value in machines_of]
    return [(machines, value) for value, machines in machines_of.items()]


def format_ranks(ranks: Iterable[int]) -> str:
    """Format rank numbers as ranges: 'rank 3', 'ranks 0–3' or 'ranks 0–1, 4'."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"{'rank' if parts == [str(runs[0][0])] else 'ranks'} {', '.join(parts)}"


def _exchange(store: Any, own: RankInfo, world_size: int, timeout: datetime.timedelta) -> list[RankInfo]:
    """Exchange RankInfo through rank 0, and return that of every rank that reported in time."""
    # Through rank 0: it reads `world_size` keys and each other rank one key, instead of `world_size` keys on each rank.
    store.set(f"rank {own.rank}", json.dumps(asdict(own)))
    if own.rank == 0:
        deadline = time.monotonic() + timeout.total_seconds()
        texts = [text for rank in range(world_size) if (text := _read(store, f"rank {rank}", deadline)) is not None]
        store.set("all", json.dumps([json.loads(text) for text in texts]))
    # Twice the timeout, because rank 0 may be late itself and then waits for the other ranks for one timeout.
    text = _read(store, "all", time.monotonic() + 2 * timeout.total_seconds())
    if text is None:
        raise RendezvousError(f"rank 0 did not get ready within {2 * timeout}; look at the log of its machine")
    ranks = [_parse_rank_info(values) for values in json.loads(text)]
    if store.add("readers", 1) == world_size:
        store.set("read by all", "")
    missing = sorted(set(range(world_size)) - {info.rank for info in ranks})
    # If a rank reported an error, the caller raises that error, which is the more likely cause.
    if missing and not any(info.failed for info in ranks):
        hosts = ", ".join(dict.fromkeys(info.host for info in ranks))
        raise RendezvousError(
            f"{format_ranks(missing)} of {world_size} did not get ready within {timeout}; the other ranks are "
            f"on {hosts}: look at the log of the missing rank or machine"
        )
    return ranks


def _parse_rank_info(values: dict[str, Any]) -> RankInfo:
    # JSON has no tuples.
    data = {name: (path, digest) for name, (path, digest) in values["data"].items()}
    return RankInfo(**{**values, "data": data})


def _read(store: Any, key: str, deadline: float) -> str | None:
    """Return the value of a key, or None if it is not set before the deadline (a value of time.monotonic)."""
    # Not 0: after the deadline, a key that is already set is still read.
    seconds = max(deadline - time.monotonic(), 0.01)
    try:
        store.wait([key], datetime.timedelta(seconds=seconds))
    except torch.distributed.DistStoreError:
        return None
    return str(store.get(key), "utf-8")


def _wait_for_readers(store: Any) -> None:
    """Wait until all ranks have read the errors, or for TIME_TO_READ."""
    with contextlib.suppress(torch.distributed.DistError):
        store.wait(["read by all"], TIME_TO_READ)
