"""Before any process group: every rank tells the others that it is ready, and with what.

Machines differ: one may lack the data, hold another copy of it, or not see the checkpoint folder. Each rank sends a few
facts through the launcher's store (torchrun's, on MASTER_ADDR); rank 0 collects them and gives all to all:

    rank 0, node-a   data 3f2a…   ─┐
    rank 1, node-a   data 3f2a…   ─┼─▶  every rank knows all four: node-b differs, and each ends with the same error
    rank 2, node-b   data 91cc…   ─┤
    rank 3, node-b   data 91cc…   ─┘

So what is wrong with one machine ends the job within seconds, with the machine's name. Otherwise the others would wait
for a rank that is gone until a collective times out.
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

# torchrun starts all ranks within seconds of each other; opening large data on a slow disk may take minutes. Under
# --max-restarts each attempt of the survivors waits as long for a machine that is gone.
PATIENCE = datetime.timedelta(minutes=5)
# An agent ends its ranks when one of them ends, so a rank with bad news waits until all others have read it.
TIME_TO_READ = datetime.timedelta(seconds=20)
EVERYWHERE = "every machine"

_meetings = itertools.count()


@dataclass(frozen=True)
class RankInfo:
    """What a rank tells the others.

    Attributes:
        rank: its number in the job.
        host: name of its machine.
        device: what it computes on, as a person says it.
        versions: of what it runs with.
        data: what each file of the data is, by a name that does not depend on the machine: (path there, hash).
        start: where it found the run to begin.
        unchecked: files of the data that it had no time to compare with their hashes.
        failed: the error it met while it got ready, or None.
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
    """A machine of the job met an error while it got ready, or did not come. Raised on every rank."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.on_one_rank = is_first_rank_of_machine()


def current_rank() -> int:
    """This rank's number; known before there are process groups."""
    return read_launcher_environment().rank


def is_first_rank_of_machine() -> bool:
    """Whether this rank speaks for its machine. Machines keep logs of their own, so each is to say why it ended."""
    return read_launcher_environment().local_rank == 0


@functools.cache
def launcher_store() -> Any:
    """The key-value store that torchrun keeps for the job; every caller gets the same.

    Keys of each attempt (torchrun --max-restarts) stand apart: given a master address, torchrun keeps one store for all
    attempts, and a rank must not read the addresses of ranks that are gone.
    """
    store, _, _ = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
    return torch.distributed.PrefixStore(f"attempt {read_launcher_environment().attempt}", store)


def launch_token() -> str | None:
    """A random word that all attempts of this torchrun share; None where it keeps no store for all of them.

    The id of a job cannot tell attempts from other jobs: torchrun's default is the same for all, and scripts have a
    fixed one.
    """
    if not read_launcher_environment().has_lasting_store:
        return None
    store = launcher_store()
    while isinstance(store, torch.distributed.PrefixStore):  # torch's own, too, keeps the attempts apart
        store = store.underlying_store
    return str(store.compare_set("mindspeed_llm launch", "", uuid.uuid4().hex), "utf-8")


def exchange_rank_info(facts: RankInfo, patience: datetime.timedelta = PATIENCE) -> list[RankInfo]:
    """Exchange facts. Collective over the ranks that torchrun started; without torchrun this rank is all there is.

    Args:
        facts: this rank's.
        patience: how long to wait for the other ranks; --distributed-timeout-minutes if that is less than PATIENCE.

    Returns:
        the facts of every rank, in the order of ranks.

    Raises:
        NotReadyError: a rank met an error, or did not come in time.
    """
    launch = read_launcher_environment()
    if launch.by_torchrun and launch.world_size > 1:
        store = torch.distributed.PrefixStore(f"meeting {next(_meetings)}", launcher_store())
        every = _exchanged(store, facts, launch.world_size, patience)
    else:
        store, every = None, [facts]
    failed = {one.rank: one.failed for one in every if one.failed is not None}
    if failed:
        if store is not None:
            _wait_for_readers(store)
        raise RendezvousError("\n".join(f"{where}: {said}" for where, said in group_by_machine(every, failed)))
    return every


def rendezvous_timeout(minutes: float) -> datetime.timedelta:
    """PATIENCE, or --distributed-timeout-minutes where the user has less of it."""
    return min(PATIENCE, datetime.timedelta(minutes=minutes))


@contextlib.contextmanager
def report_startup_errors(minutes: float, busy: datetime.timedelta = datetime.timedelta(0)) -> Iterator[None]:
    """Tell all other ranks of an error inside the block, so that none waits for this one.

    Args:
        minutes: --distributed-timeout-minutes.
        busy: how much longer than this rank the others may be at work inside the block.

    Raises:
        UserError: the one from the block if every rank met the same; NotReadyError if some did not.
    """
    try:
        yield
    except RendezvousError:
        raise
    except Exception as error:
        users = isinstance(error, UserError)
        said = str(error) if users else f"{type(error).__name__}: {error}"
        try:
            exchange_rank_info(
                RankInfo(current_rank(), socket.gethostname(), failed=said), rendezvous_timeout(minutes) + busy
            )
        except RendezvousError as of_all:
            if users and str(of_all) != f"{EVERYWHERE}: {said}":
                raise of_all from None
        if isinstance(error, UserError):
            error.on_one_rank = is_first_rank_of_machine()
        raise


def group_by_machine(every: Sequence[RankInfo], values: Mapping[int, str]) -> list[tuple[str, str]]:
    """Who has which value: ('node-a (ranks 0–3)', value), in the order of ranks; EVERYWHERE for a value of all."""
    hosts: dict[str, dict[str, list[int]]] = {}
    for one in every:
        if one.rank in values:
            hosts.setdefault(values[one.rank], {}).setdefault(one.host, []).append(one.rank)
    where = {
        value: ", ".join(f"{host} ({format_ranks(ranks)})" for host, ranks in by.items()) for value, by in hosts.items()
    }
    if len(where) == 1 and len(values) == len(every):
        return [(EVERYWHERE, value) for value in where]
    return [(machines, value) for value, machines in where.items()]


def format_ranks(ranks: Iterable[int]) -> str:
    """'rank 3', 'ranks 0–3', 'ranks 0–1, 4'."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1][1:] = [rank]
        else:
            runs.append([rank])
    words = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"{'rank' if words == [str(runs[0][0])] else 'ranks'} {', '.join(words)}"


def _exchanged(store: Any, facts: RankInfo, world: int, patience: datetime.timedelta) -> list[RankInfo]:
    """Every rank's facts, by way of rank 0: a rank reads one key and rank 0 `world` keys, not each rank all."""
    store.set(f"rank {facts.rank}", json.dumps(asdict(facts)))
    if facts.rank == 0:
        deadline = time.monotonic() + patience.total_seconds()
        came = [text for rank in range(world) if (text := _read(store, f"rank {rank}", deadline)) is not None]
        store.set("all", json.dumps([json.loads(text) for text in came]))
    # Rank 0 itself may come late: it has its own patience for the others after that.
    text = _read(store, "all", time.monotonic() + 2 * patience.total_seconds())
    if text is None:
        raise RendezvousError(
            f"rank 0 did not get ready within {2 * patience}; its machine's log is the one to look at"
        )
    every = [_facts(one) for one in json.loads(text)]
    if store.add("readers", 1) == world:
        store.set("read by all", "")
    missing = sorted(set(range(world)) - {one.rank for one in every})
    if missing and not any(one.failed for one in every):
        raise RendezvousError(
            f"{format_ranks(missing)} of {world} did not get ready within {patience}; the machines that did are "
            f"{', '.join(dict.fromkeys(one.host for one in every))}, the log of another one is to be looked at"
        )
    return every


def _facts(values: dict[str, Any]) -> RankInfo:
    data = {name: (path, digest) for name, (path, digest) in values["data"].items()}
    return RankInfo(**{**values, "data": data})


def _read(store: Any, key: str, deadline: float) -> str | None:
    """The value, or None if it does not come before the deadline (time.monotonic)."""
    left = max(deadline - time.monotonic(), 0.01)
    try:
        store.wait([key], datetime.timedelta(seconds=left))
    except torch.distributed.DistStoreError:
        return None
    return str(store.get(key), "utf-8")


def _wait_for_readers(store: Any) -> None:
    with contextlib.suppress(torch.distributed.DistError):
        store.wait(["read by all"], TIME_TO_READ)
