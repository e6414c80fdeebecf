"""What this machine has found out about the hashes of packed files, so that not every start reads all of them again.

    ~/.cache/mindspeed_llm/verified/HOST/KEY.json      one small file for each packed file; XDG_CACHE_HOME is followed

An entry holds for a path, size, modification time, inode and expected hash. What leaves these as they were is not
seen: a write that sets the modification time back, or a disk that no longer returns what was written. What is read may
come from the system's file cache, so damage on the disk under it is not seen either. `--verify-data-seconds -1` reads
every file again.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspeed_llm.storage.atomic_write import atomic_file
from mindspeed_llm.storage.hashing import FileDigest, sha256_of
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_bytes

# Entries that no start has used for so long are removed.
SECONDS_UNUSED = 180 * 24 * 3600.0


@dataclass(frozen=True)
class HashCacheEntry:
    """What is known of one file.

    Attributes:
        sha256: the hash that its manifest expects.
        verified: the file has that hash; otherwise the time limit ended the check.
        seconds: how long it was read.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str
    verified: bool
    seconds: float

    @classmethod
    def of(
        cls, path: Path, status: os.stat_result, facts: FileDigest, verified: bool = False, seconds: float = 0.0
    ) -> HashCacheEntry:
        """From the file's status when it was read, and what its manifest says."""
        return cls(
            str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino, facts.sha256, verified, seconds
        )

    @property
    def subject(self) -> tuple[str, int, int, int, str]:
        """What must be the same for the entry to hold."""
        return self.path, self.size, self.mtime_ns, self.inode, self.sha256


class HashCache:
    """Entries in a folder, for any number of processes at a time: each is written beside and renamed.

    A folder that cannot be written, or an entry that is damaged, is the same as one that is not there.

    Args:
        folder: None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of_this_machine(cls) -> HashCache:
        """The user's, made if need be; one that keeps nothing where there is no place for it."""
        given = os.environ.get("XDG_CACHE_HOME", "")
        try:
            base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # noqa: PTH117 - "" is not a path
            folder = base / "mindspeed_llm" / "verified" / (socket.gethostname() or "localhost").replace("/", "_")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # RuntimeError: there is no home directory
            return cls(None)
        return cls(folder)

    @property
    def writable(self) -> bool:
        """Whether entries can be kept."""
        return self.folder is not None and os.access(self.folder, os.W_OK | os.X_OK)

    def entry(self, path: Path, facts: FileDigest) -> HashCacheEntry | None:
        """What is known of a file as it is now; None if nothing is."""
        if self.folder is None:
            return None
        place = self._place(path)
        try:
            subject = HashCacheEntry.of(path, path.stat(), facts).subject
            entry: HashCacheEntry = decode_dataclass(json.loads(read_file_bytes(place)), HashCacheEntry, "")
            if entry.subject != subject:
                return None
            with contextlib.suppress(OSError):
                os.utime(place)  # in use
        except (OSError, ValueError, RecursionError):
            return None
        return entry

    def keep(self, entry: HashCacheEntry) -> None:
        """Write an entry in place of any other of the same path."""
        if self.folder is None:
            return
        place = self._place(Path(entry.path))
        content = json.dumps(asdict(entry), indent=1) + "\n"
        # A full disk, for example: the next start checks again.
        with contextlib.suppress(OSError), atomic_file(place, shared=True, durable=False) as file:
            file.write(content.encode("utf-8", "surrogateescape"))

    def forget(self, path: Path) -> None:
        """Remove what is known of a file."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self._place(path).unlink()

    def remove_unused(self) -> None:
        """Remove entries that no start has used for SECONDS_UNUSED, and what a kill has left."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            for place in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    if place.stat().st_mtime < time.time() - SECONDS_UNUSED:
                        place.unlink()

    def _place(self, path: Path) -> Path:
        assert self.folder is not None
        return self.folder / f"{sha256_of(os.fsencode(path.absolute()))[:32]}.json"
