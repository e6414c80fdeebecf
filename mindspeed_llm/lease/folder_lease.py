"""The lease of one directory: a small file that names the process which writes there.

    lease.1.json      {"token": "9f2c…", "beat": "0000000042", "holder": {"host": "node-a", "process": 4711, …}}

The holder rewrites the file every 10 seconds. The lease of a directory is the file with the highest number. Lease n is
taken over by creating file n + 1; then file n is removed. Creating a file that must not exist yet (O_EXCL) succeeds for
exactly one process, on NFS as well, so that one of several starting runs gets the lease. Nothing is renamed or locked.

The holder writes to the file that it has kept open. If another process has taken over, that file has no name any more,
and the write has no effect. A holder is alive if the content of its file changes: a starting run reads the file
repeatedly and measures the time with its own clock. The clocks of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspeed_llm.errors import UserError
from mindspeed_llm.lease.lease_holder import LeaseHolder
from mindspeed_llm.storage.atomic_write import rewrite
from mindspeed_llm.storage.json_dataclass import decode_dataclass

logger = logging.getLogger(__name__)

FORMAT = "mindspeed_llm.lease"
_MAXIMUM_BYTES = 1 << 16  # a lease has less than 1 kB; the limit is for a file that is not a lease


@dataclass(frozen=True)
class LeaseTiming:
    """Intervals and limits of leases, in seconds.

    Attributes:
        beat: interval between two refreshes of a lease.
        silence: time without a refresh after which a lease is taken over.
        silence_of_same_job: the same, if holder and starting run have the same job id, but it is unknown whether the
            holder's attempt has ended.
        look: interval at which a starting run reads the lease of another process.
    """

    beat: float = 10.0
    silence: float = 60.0
    silence_of_same_job: float = 20.0
    look: float = 1.0


class LeaseError(UserError):
    """Another live run writes to the directory, or the lease file cannot be written."""


class LeaseHeldError(LeaseError):
    """Another live run writes to the directory."""


class LeaseLostError(UserError):
    """Another run has taken over the directory, so this run must not write there any more."""


@dataclass(frozen=True)
class FoundLease:
    """The content of a lease file at the time it was read.

    Attributes:
        number: the number in the name of the file.
        content: the bytes of the file.
        token: random id of the lease; None if the file cannot be decoded, for example if it is not yet written.
        holder: the process that holds the lease; None in the same cases.
    """

    number: int
    content: bytes
    token: str | None
    holder: LeaseHolder | None

    def __str__(self) -> str:
        return str(self.holder or "another process (its lease cannot be read)")


class FolderLease:
    """The lease of one directory for this process. One thread calls `beat`, another one all other methods.

    Args:
        flag: the flag that specifies the directory, for messages.
        folder: the directory; created if it does not exist.
        own: this process.
        timing: intervals and limits in seconds.
    """

    def __init__(self, flag: str, folder: Path, own: LeaseHolder, timing: LeaseTiming) -> None:
        self.flag, self.folder = flag, folder
        self._own, self._timing = own, timing
        self._token = uuid.uuid4().hex
        self._path = folder
        self._descriptor = -1
        self._beats = 0
        self._made: list[Path] = []
        self._lost = False
        self._confirmed = 0.0

    def take(self) -> None:
        """Take the lease.

        Returns at once if nobody holds it or the holder has certainly ended; otherwise after the holder has not
        refreshed it for the time in `LeaseTiming`.

        Raises:
            LeaseError: The holder is alive, or the directory cannot be written to.
        """
        try:
            self._make_folder()
            self._take()
        except OSError as error:
            self._remove_made()
            raise LeaseError(f"{self.flag} {self.folder}: cannot be written ({error.strerror})") from error
        except BaseException:
            self._remove_made()
            raise

    def beat(self) -> None:
        """Refresh the lease, or note that it is lost. Called by the refresh thread."""
        # Storage that fails for a moment must not end the thread: it tries again at the next interval.
        with contextlib.suppress(OSError):
            if self._confirm():
                self._beats += 1
                rewrite(self._descriptor, self._content())

    def check(self, thoroughly: bool = False) -> None:
        """Check that this process still holds the lease.

        Args:
            thoroughly: read the file in any case. Otherwise it is read only if the last refresh is long ago.

        Raises:
            LeaseLostError: Another run has taken over the lease, or its file is gone.
        """
        # After a long time without a refresh this process may have been suspended, and the main thread may continue
        # before the refresh thread has noticed a takeover.
        if not self._lost and (thoroughly or _now() - self._confirmed > 2 * self._timing.beat):
            with contextlib.suppress(OSError):  # storage that cannot be reached does not mean a takeover
                self._confirm()
        if self._lost:
            now = None
            with contextlib.suppress(OSError):
                now = _newest(self.folder)
            by = f"it is now held by {now}" if now else "its lease file is gone"
            raise LeaseLostError(
                f"{self.flag} {self.folder}: this run has lost its lease ({by}). It did not refresh the lease for so "
                f"long that another run could take over, or somebody removed {self._path.name}. This run has stopped "
                "writing there"
            )

    def release(self, keep_open: bool = False) -> None:
        """Remove the lease file, if this process still holds the lease.

        Args:
            keep_open: do not close the file, because the refresh thread may still be writing to it.
        """
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if self._confirm():
                self._path.unlink()
        # A closed descriptor number may be given to another file, which the thread would then overwrite.
        if not keep_open:
            os.close(self._descriptor)
            self._descriptor = -1
        self._remove_made()

    def _take(self) -> None:
        first: FoundLease | None = None
        first_seen = 0.0
        while True:
            current = _newest(self.folder)
            if current is None:
                if self._create(1, None):
                    return
                continue
            silence, reason = self._silence_before_takeover(current)
            if silence and first is not None and current.content != first.content:
                raise LeaseHeldError(
                    f"{self.flag} {self.folder}: another run is writing there: {current}. Wait until it ends, stop it, "
                    f"or give another {self.flag}"
                )
            if first is None:
                first, first_seen = current, _now()
                if silence:
                    logger.warning(
                        f"{self.flag} {self.folder}: held by {current}; waiting to see whether it is alive, and taking "
                        f"over after {silence:g} s without a refresh"
                    )
            if _now() - first_seen < silence:
                time.sleep(min(self._timing.look, silence))
            elif self._create(current.number + 1, current):
                logger.warning(f"{self.flag} {self.folder}: taken over from {current}, {reason}")
                return

    def _silence_before_takeover(self, lease: FoundLease) -> tuple[float, str]:
        """Return the seconds without a refresh after which a lease can be taken over, and the reason for a message."""
        timing, holder = self._timing, lease.holder
        if holder is not None and holder.is_gone(self._own):
            return 0, "which has ended"
        if holder is not None and holder.is_earlier_attempt(self._own):
            return 0, "an earlier attempt of this job"
        of_same_job = holder is not None and holder.is_of_same_job(self._own)
        silence = timing.silence_of_same_job if of_same_job else timing.silence
        return silence, f"which did not refresh its lease for {silence:g} s"

    def _create(self, number: int, predecessor: FoundLease | None) -> bool:
        """Create the lease file with a number. Return False if another process was faster."""
        path = _path(self.folder, number)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        try:
            rewrite(descriptor, self._content())
            # If the predecessor was released meanwhile, another starting run may hold a lease with a lower number: it
            # found no lease and created number 1. Then this file is withdrawn.
            before = _read(self.folder, predecessor.number) if predecessor else None
            is_next = predecessor is None or (before is not None and before.token == predecessor.token)
            wins = is_next and max(_numbers(self.folder)) == number
        except OSError:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        if not wins:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            return False
        self._path, self._descriptor, self._confirmed = path, descriptor, _now()
        # Older files have no effect any more, as the highest number counts. That one cannot be removed is no error.
        for older in _numbers(self.folder):
            if older < number:
                with contextlib.suppress(OSError):
                    _path(self.folder, older).unlink()
        return True

    def _confirm(self) -> bool:
        """Return whether the file of this lease exists and is still its own, and store the result.

        Raises:
            OSError: The storage cannot be read, so the result is unknown.
        """
        try:
            is_own = self._token.encode() in self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            is_own = False
        if is_own:
            self._confirmed = _now()
        else:
            self._lost = True
        return is_own

    def _content(self) -> bytes:
        """Return the content of the file for the next write, always with the same length."""
        # `rewrite` does not truncate the file, so the counter has a fixed number of digits.
        values = {
            "format": FORMAT,
            "token": self._token,
            "beat": f"{self._beats:010d}",
            "holder": asdict(self._own),
        }
        return (json.dumps(values, indent=1) + "\n").encode()

    def _make_folder(self) -> None:
        missing = [path for path in (self.folder, *self.folder.absolute().parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _remove_made(self) -> None:
        """Remove the directories that `take` created, unless something else was put there."""
        for path in self._made:
            with contextlib.suppress(OSError):  # rmdir fails if the directory is not empty
                path.rmdir()
        self._made = []


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease.{number}.json"


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the lease files in a directory, in ascending order."""
    matches = (re.fullmatch(r"lease\.(\d{1,9})\.json", name) for name in os.listdir(folder))  # noqa: PTH208
    return sorted(int(match.group(1)) for match in matches if match)


def _newest(folder: Path) -> FoundLease | None:
    """Return the lease of a directory; None if nobody holds it."""
    for number in reversed(_numbers(folder) if folder.is_dir() else []):
        lease = _read(folder, number)
        if lease is not None:  # None: it was released after the directory was listed
            return lease
    return None


def _read(folder: Path, number: int) -> FoundLease | None:
    """Read a lease file. Return None if it does not exist any more."""
    try:
        with _path(folder, number).open("rb") as file:
            content = file.read(_MAXIMUM_BYTES)
    except FileNotFoundError:
        return None
    try:
        raw = json.loads(content)
        return FoundLease(number, content, str(raw["token"]), decode_dataclass(raw["holder"], LeaseHolder, ""))
    except (ValueError, KeyError, TypeError, RecursionError):
        # A file that was created a moment ago is still empty. Its content changes as soon as its holder writes, so it
        # is treated like a lease whose holder is unknown.
        return FoundLease(number, content, None, None)


def _now() -> float:
    """Return the seconds of a clock that never goes back.

    Where the system has such a clock, it includes the time in which the machine was suspended: other machines have seen
    that time pass without a refresh.
    """
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
