"""The leases of one process, and the thread that refreshes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from mindspeed_llm.lease.folder_lease import FolderLease, LeaseTiming
from mindspeed_llm.lease.lease_holder import current_holder

TIMING = LeaseTiming()
# Limit for the wait at the end of a run: a network file system that hangs must not keep the process alive.
_SECONDS_TO_JOIN = 5.0


class HeldLeases:
    """A context in which a process holds leases of directories. They are released at the end of the block.

    Args:
        timing: intervals and limits; None for `TIMING`.
    """

    def __init__(self, timing: LeaseTiming | None = None) -> None:
        self._timing = timing or TIMING
        self._held: list[FolderLease] = []
        self._end = threading.Event()
        self._process = os.getpid()
        # A daemon, so that a write to storage that hangs does not prevent the process from ending.
        self._thread = threading.Thread(target=self._refresh, name="leases", daemon=True)

    def __enter__(self) -> HeldLeases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The leases belong to the process that took them. A forked child (an asynchronous save) must not remove them.
        if os.getpid() != self._process:
            return
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join(_SECONDS_TO_JOIN)
        for lease in self._held:
            lease.release(keep_open=self._thread.is_alive())
        self._held = []

    def take(self, folders: Mapping[str, Path], launch: str | None = None) -> None:
        """Take the lease of each directory, and refresh it from now on.

        Args:
            folders: flag → directory that the flag specifies.
            launch: random id that all attempts of this torchrun share; None without torchrun.

        Raises:
            LeaseError: Another live run writes to one of the directories, or a lease file cannot be written.
        """
        for flag, folder in folders.items():
            lease = FolderLease(flag, folder, current_holder(launch), self._timing)
            lease.take()
            self._held.append(lease)
            if self._thread.ident is None:
                self._thread.start()

    def check(self, thoroughly: bool = False) -> None:
        """Check that this process still holds all its leases.

        Args:
            thoroughly: read the lease files in any case; see `FolderLease.check`.

        Raises:
            LeaseLostError: Another run has taken over a lease, or its file is gone.
        """
        for lease in self._held:
            lease.check(thoroughly)

    def _refresh(self) -> None:
        while not self._end.wait(self._timing.beat):
            for lease in tuple(self._held):  # a copy, because `take` may append meanwhile
                lease.beat()
