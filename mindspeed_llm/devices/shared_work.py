"""Distribute a list of work items over the ranks of a machine: each item is processed by one rank.

    first rank of the machine   decides the order: items 4, 0, 2
    every rank                  takes the next item whenever it is free: rank 0 gets 4, rank 1 gets 0, rank 1 gets 2

It uses the launcher's store, so that it works before process groups exist.
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
    """Return the number of ranks of this machine that share work; 1 if the launcher does not report the machine."""
    launch = read_launcher_environment()
    return launch.local_world_size if launch.by_torchrun and launch.machine is not None else 1


class SharedWork:
    """A list of work items that the ranks of one machine process together.

    Every rank of the job must create an object for the same list, in the same order of lists.

    Args:
        order: returns the item numbers in the order of processing; called on the first rank of the machine only.
        patience: maximum time to wait for the first rank.
    """

    def __init__(self, order: Callable[[], Sequence[int]], patience: datetime.timedelta) -> None:
        self._lock = threading.Lock()  # several threads of a rank take items
        launch = read_launcher_environment()
        # Two prefixes: `halt` concerns the ranks of all machines, the order and the counter those of one machine.
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
        # Not an error here: the next rendezvous reports why the first rank did not come.
        except torch.distributed.DistStoreError:
            self._numbers = []

    def take(self) -> int | None:
        """Return the number of the next item, which no other rank receives; None if no item is left."""
        with self._lock:
            index = next(self._taken) if self._machine is None else self._machine.add("taken", 1) - 1
        return self._numbers[index] if index < len(self._numbers) else None

    def halt(self) -> None:
        """Signal the ranks of all machines that the work is no longer needed."""
        if self._job is not None:
            with self._lock:
                self._job.set("halted", "")

    def halted(self) -> bool:
        """Return whether a rank of any machine has called `halt`."""
        if self._job is None:
            return False
        with self._lock:
            return bool(self._job.check(["halted"]))
