"""The leases that one process holds, and the thread that refreshes them."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from mindspeed_llm.lease.folder_lease import FolderLease, LeaseTiming
from mindspeed_llm.lease.lease_holder import current_holder

TIMING = LeaseTiming()
# At its end a run does not wait longer for storage that hangs.
_SECONDS_TO_JOIN = 5.0


class HeldLeases:
    """A context for the time in which a process writes to folders: what it took is released at the block's end.

    Args:
        timing: seconds; without it TIMING.
    """

    def __init__(self, timing: LeaseTiming | None = None) -> None:
        self._timing = timing or TIMING
        self._held: list[FolderLease] = []
        self._end = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._refresh, name="leases", daemon=True)

    def __enter__(self) -> HeldLeases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release; a forked child that comes here has nothing to release."""
        if os.getpid() != self._process:
            return
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join(_SECONDS_TO_JOIN)
        for lease in self._held:
            lease.release(is_refreshed=self._thread.is_alive())
        self._held = []

    def take(self, folders: Mapping[str, Path], launch: str | None = None) -> None:
        """Take the lease of each folder, and keep it.

        Args:
            folders: flag → folder.
            launch: the word that all attempts of this torchrun share, if there is one.

        Raises:
            LeaseError: another live run holds one of them.
        """
        for flag, folder in folders.items():
            lease = FolderLease(flag, folder, current_holder(launch), self._timing)
            lease.take()
            self._held.append(lease)
            if self._thread.ident is None:
                self._thread.start()

    def check(self, thoroughly: bool = False) -> None:
        """Find out whether everything that was taken is still this process's; see `FolderLease.check`.

        Raises:
            LeaseLostError: something is not.
        """
        for lease in self._held:
            lease.check(thoroughly)

    def _refresh(self) -> None:
        while not self._end.wait(self._timing.beat):
            for lease in tuple(self._held):
                lease.beat()
