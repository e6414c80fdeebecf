"""Before any process group: every rank tells the others that it is ready, and with what.

Machines differ: one may lack the data, hold another copy of it, or not see the checkpoint folder. Each rank sends a few
facts through the launcher's store (torchrun's, on MASTER_ADDR); rank 0 collects them and gives all to all:

    rank 0, node-a   data 3f2a…   ─┐
    rank 1, node-a   data 3f2a…   ─┼─▶  every rank knows all four: node-b differs, and each ends with the same error
    rank 2, node-b   data 91cc…   ─┤
    rank 3, node-b   data 91cc…   ─┘

So what is wrong with one machine ends the job within seconds, with the machine's name, where the others would wait for a rank
that is gone until a collective times out.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mindspeed_llm.errors import UserError

# torchrun starts all ranks within seconds of each other; opening large data on a slow disk may take minutes.
PATIENCE = datetime.timedelta(minutes=5)
# An agent ends its ranks when one of them ends, so a rank with bad news waits until all others have read it.
TIME_TO_READ = datetime.timedelta(seconds=20)

_meetings = itertools.count()


@dataclass(frozen=True)
class Facts:
    """What a rank tells the others.

    Attributes:
        rank: its number in the job.
        host: name of its machine.
        device: what it computes on, as a person says it.
        versions: of the libraries it runs with.
        data: [prefix, fingerprint] of each data set, in the order of the command line.
        start: where it found the run to begin, such as 'continue from iter_0000006'.
        failed: the error it met while it got ready, or None.
    """

    rank: int
    host: str
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    data: list[list[str]] = field(default_factory=list)
    start: str = ""
    failed: str | None = None


class NotReady(UserError):
    """Some machine of the job met an error while it got ready, or did not come. Raised on every rank."""


def own_rank() -> int:
    """This rank's number; known before there are process groups."""
    return int(os.environ.get("RANK", "0"))


@functools.cache
def launcher_store(patience: datetime.timedelta = PATIENCE) -> Any:
    """The key-value store that torchrun's agent keeps for this job, the same for every caller.

    Keys of each attempt (torchrun --max-restarts) stand apart: with a master address the agent keeps one store for all
    attempts, and a rank must not read the addresses of ranks that are gone.
    """
    store, _, _ = next(torch.distributed.rendezvous("env://", timeout=patience))
    store.set_timeout(patience)
    return torch.distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def meet(facts: Facts, patience: datetime.timedelta = PATIENCE) -> list[Facts]:
    """Exchange facts. Collective over the ranks that torchrun started; without torchrun this rank is all there is.

    Args:
        facts: this rank's.
        patience: how long to wait for the other ranks.

    Returns:
        the facts of every rank, in the order of ranks.

    Raises:
        NotReady: a rank met an error, or did not come in time.
    """
    if not torch.distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        if facts.failed is not None:
            raise NotReady(facts.failed)
        return [facts]
    store = torch.distributed.PrefixStore(f"meeting {next(_meetings)}", launcher_store())
    every = [Facts(**one) for one in json.loads(_through(store, facts, int(os.environ["WORLD_SIZE"]), patience))]
    failed = {one.rank: one.failed for one in every if one.failed is not None}
    if failed:
        _wait_for_readers(store)
        lines = [f"{_where(every, ranks)}: {said}" for said, ranks in _by_value(failed).items()]
        raise _said_on_every_machine(NotReady("\n".join(lines)))
    return every


@contextlib.contextmanager
def getting_ready() -> Iterator[None]:
    """Tell all other ranks of an error inside the block, so that none waits for this one.

    Raises:
        UserError: the one from the block, if every rank met the same; NotReady, if some did not.
    """
    try:
        yield
    except NotReady:
        raise
    except Exception as error:
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        try:
            meet(Facts(own_rank(), socket.gethostname(), failed=said))
        except NotReady as of_all:
            if isinstance(error, UserError) and not str(of_all).startswith(f"{_ALL}: "):
                raise of_all from error
        raise


def refuse_differences(every: Sequence[Facts], what: str, advice: str, values: dict[int, str]) -> None:
    """Raise unless all ranks have the same value.

    Raises:
        NotReady: naming the machines of each value.
    """


def _through(store: Any, facts: Facts, world: int, patience: datetime.timedelta) -> str:
    """Every rank's facts as one JSON list, by way of rank 0: each rank reads one key, rank 0 reads `world` of them."""
    store.set(f"rank {facts.rank}", json.dumps(asdict(facts)))
    try:
        if facts.rank == 0:
            missing = set(range(world))
    except torch.distributed.DistStoreError:
        raise
    return ""


_ALL = "on every machine"
