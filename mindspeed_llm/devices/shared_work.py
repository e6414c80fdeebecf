"""Work that the ranks of one machine share: each item of a list is given to one of them.

    first rank of the machine   decides the order: items 4, 0, 2
    every rank                  takes the next item whenever it is free: rank 0 gets 4, rank 1 gets 0, rank 1 gets 2

Works before there are process groups, through the launcher's store.
"""

from __future__ import annotations

import datetime
import itertools
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mindspeed_llm.devices import rendezvous
from mindspeed_llm.launcher_environment import read_launcher_environment

_lists = itertools.count()


def ranks_sharing_work() -> int:
    """How many ranks of this machine share work; 1 if the launcher does not tell which rank is on which machine."""
    launch = read_launcher_environment()
    return launch.local_world_size if launch.by_torchrun and launch.machine is not None else 1


class SharedWork:
    """A list of items that the ranks of one machine work off together. Every rank of the job makes one.

    Args:
        order: the items' numbers in the order in which they are to be done; the first rank of the machine is asked.
        patience: how long to wait for the first rank.
    """

    def __init__(self, order: Callable[[], Sequence[int]], patience: datetime.timedelta) -> None:
        self._lock = threading.Lock()  # several threads of a rank take items
        launch = read_launcher_environment()
        several = launch.by_torchrun and launch.world_size > 1
        self._job = (
            torch.distributed.PrefixStore(f"work {next(_lists)}", rendezvous.launcher_store()) if several else None
        )
        self._machine: Any = None
        self._taken = itertools.count()
        if self._job is None or ranks_sharing_work() == 1:
            self._numbers = list(order())
            return
        self._machine = torch.distributed.PrefixStore(f"machine {launch.machine}", self._job)
        if rendezvous.is_first_rank_of_machine():
            self._machine.set("order", json.dumps(list(order())))
        try:
            self._machine.wait(["order"], patience)
            self._numbers = json.loads(self._machine.get("order"))
        except torch.distributed.DistStoreError:  # why the first rank did not come is told when the ranks meet
            self._numbers = []

    def take(self) -> int | None:
        """The number of the next item, which no other rank is given; None when there is none left."""
        with self._lock:
            place = next(self._taken) if self._machine is None else self._machine.add("taken", 1) - 1
        return self._numbers[place] if place < len(self._numbers) else None

    def halt(self) -> None:
        """Tell the ranks of every machine that the work is no longer needed."""
        if self._job is not None:
            with self._lock:
                self._job.set("halted", "")

    def halted(self) -> bool:
        """Whether a rank of any machine has called `halt`."""
        if self._job is None:
            return False
        with self._lock:
            return bool(self._job.check(["halted"]))
