"""The lease of one folder: a small file that says who writes there.

    lease.1.json      {"token": "9f2c…", "beat": "0000000042", "holder": {"host": "node-a", "process": 4711, …}}

Its holder rewrites it every 10 seconds. The lease of a folder is the file with the highest number; number n is taken
over by creating n + 1, and then n is removed. Creating a file that must not exist yet (O_EXCL) succeeds for exactly one
process, on NFS too, so that of several starters exactly one wins. Nothing is ever renamed or locked.

The holder writes to the file that it has kept open: if another has taken over, that file has no name any more and the
write changes nothing. Life is what changes: a starter reads the file again and again, by its own clock, and never
compares clocks of two machines.
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
_MOST_BYTES = 1 << 16  # what is longer is no lease


@dataclass(frozen=True)
class LeaseTiming:
    """Seconds.

    Attributes:
        beat: between two refreshes of a lease.
        silence: without a refresh, after which a lease is taken over.
        silence_of_same_job: the same, if the launcher gave holder and starter one job id, but does not say that the
            holder's attempt has ended.
        look: between two looks at a lease that may be silent.
    """

    beat: float = 10.0
    silence: float = 60.0
    silence_of_same_job: float = 20.0
    look: float = 1.0


class LeaseError(UserError):
    """Another live run writes to the folder."""


class LeaseLostError(UserError):
    """Another run has taken the folder over, so this one must not write there any more."""


@dataclass(frozen=True)
class FoundLease:
    """A lease file as it was read.

    Attributes:
        number: in its name.
        content: of the file.
        token: of its holder; None where the file cannot be understood, for it may not be written yet.
        holder: the process, None as well.
    """

    number: int
    content: bytes
    token: str | None
    holder: LeaseHolder | None

    def __str__(self) -> str:
        return str(self.holder or "another process (its lease cannot be read)")


class FolderLease:
    """The lease of one folder for this process. One thread calls `beat`, another one everything else.

    Args:
        flag: that named the folder, for messages.
        folder: made if it is not there.
        own: this process.
        timing: seconds.
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
        """Take the lease: at once if the folder is free or its holder is certainly gone, else once that is silent.

        Raises:
            LeaseError: the holder is alive; or the folder cannot be written to.
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
        """Refresh the lease, or find it lost. For the thread that does so; storage that fails is tried again later."""
        with contextlib.suppress(OSError):
            if self._confirm():
                self._beats += 1
                rewrite(self._descriptor, self._content())

    def check(self, thoroughly: bool = False) -> None:
        """Find out whether the lease is still this process's.

        Args:
            thoroughly: read the file in any case. Otherwise only if the last refresh is long ago: this process may
                have been suspended, and the thread that refreshes has not come to its turn yet.

        Raises:
            LeaseLostError: it is not.
        """
        if not self._lost and (thoroughly or _now() - self._confirmed > 2 * self._timing.beat):
            with contextlib.suppress(OSError):  # storage that cannot be reached is no sign of another run
                self._confirm()
        if self._lost:
            now = None
            with contextlib.suppress(OSError):
                now = _newest(self.folder)
            by = f"it is now held by {now}" if now else "its lease file is gone"
            raise LeaseLostError(
                f"{self.flag} {self.folder}: this run has lost it ({by}); it was silent for so long that another run "
                f"could take over, or somebody removed {self._path.name}. Nothing more was written there"
            )

    def release(self, is_refreshed: bool = False) -> None:
        """Remove the lease, if it is still this process's.

        Args:
            is_refreshed: the thread may still be writing, so the file stays open.
        """
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if self._confirm():
                self._path.unlink()
        if not is_refreshed:
            os.close(self._descriptor)
            self._descriptor = -1
        self._remove_made()

    def _take(self) -> None:
        first: FoundLease | None = None
        first_seen = 0.0
        while True:
            found = _newest(self.folder)
            if found is None:
                if self._create(1, None):
                    return
                continue
            silence, why = self._patience(found)
            if silence and first is not None and found.content != first.content:
                raise LeaseError(
                    f"{self.flag} {self.folder}: another run is writing there: {found}. Wait for its end, stop it, or "
                    f"give another {self.flag}"
                )
            if first is None:
                first, first_seen = found, _now()
                if silence:
                    logger.warning(
                        f"{self.flag} {self.folder}: held by {found}; waiting to see whether it is alive, and taking "
                        f"over after {silence:g} s of silence"
                    )
            if _now() - first_seen < silence:
                time.sleep(min(self._timing.look, silence))
            elif self._create(found.number + 1, found):
                logger.warning(f"{self.flag} {self.folder}: taken over from {found}, {why}")
                return

    def _patience(self, found: FoundLease) -> tuple[float, str]:
        """Seconds of silence after which `found` can be taken over, and why then."""
        timing, holder = self._timing, found.holder
        if holder is not None and holder.is_gone(self._own):
            return 0, "which has ended"
        if holder is not None and holder.is_earlier_attempt(self._own):
            return 0, "an earlier attempt of this job"
        of_same_job = holder is not None and holder.is_of_same_job(self._own)
        silence = timing.silence_of_same_job if of_same_job else timing.silence
        return silence, f"which was silent for {silence:g} s"

    def _create(self, number: int, predecessor: FoundLease | None) -> bool:
        """Create the lease with a number; False if another process was faster."""
        path = _path(self.folder, number)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        try:
            rewrite(descriptor, self._content())
            # If the predecessor was released meanwhile, another starter may hold a lease with a lower number.
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
        for older in _numbers(self.folder):
            if older < number:
                with contextlib.suppress(OSError):
                    _path(self.folder, older).unlink()
        return True

    def _confirm(self) -> bool:
        """Whether the file of this lease is there and still this one's; remembers when it was.

        Raises:
            OSError: the storage cannot tell.
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
        """What the file holds now; always of the same length."""
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
        """Remove the folders that taking the lease made, if nothing else was put there."""
        for path in self._made:
            with contextlib.suppress(OSError):
                path.rmdir()
        self._made = []


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease.{number}.json"


def _numbers(folder: Path) -> list[int]:
    """Numbers of the lease files in a folder, in ascending order."""
    matches = (re.fullmatch(r"lease\.(\d{1,9})\.json", name) for name in os.listdir(folder))  # noqa: PTH208
    return sorted(int(match.group(1)) for match in matches if match)


def _newest(folder: Path) -> FoundLease | None:
    """The lease of a folder; None if nobody holds it."""
    for number in reversed(_numbers(folder) if folder.is_dir() else []):
        found = _read(folder, number)
        if found is not None:
            return found
    return None


def _read(folder: Path, number: int) -> FoundLease | None:
    """A lease file; None if it is not there any more."""
    try:
        with _path(folder, number).open("rb") as file:
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        return None
    try:
        raw = json.loads(content)
        return FoundLease(number, content, str(raw["token"]), decode_dataclass(raw["holder"], LeaseHolder, ""))
    except (ValueError, KeyError, TypeError, RecursionError):
        return FoundLease(number, content, None, None)


def _now() -> float:
    """Seconds on this machine's clock, those included in which it was suspended, where the system tells."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
