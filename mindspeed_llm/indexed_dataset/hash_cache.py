"""Cache of hash verifications on this machine, so that a start does not read all packed files again.

    ~/.cache/mindspeed_llm/verified/HOST/KEY.json      one small file per packed file; XDG_CACHE_HOME is respected

An entry is valid for a path, size, modification time, inode and expected hash. Damage that changes none of them is not
detected: a write that restores the modification time, or a disk that no longer returns the data that was written. Data
may also be read from the file cache of the operating system, which hides damage on the disk.
`--verify-data-seconds -1` reads every file again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mindspeed_llm.storage.atomic_write import atomic_file
from mindspeed_llm.storage.cache_directory import cache_directory_of_this_machine
from mindspeed_llm.storage.hashing import FileDigest, sha256_of
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_bytes

# Entries that no start has used for this time are removed.
SECONDS_UNUSED = 180 * 24 * 3600.0


@dataclass(frozen=True)
class HashCacheEntry:
    """Result of the last verification of one file.

    Attributes:
        path: absolute path of the file.
        size: size in bytes.
        mtime_ns: modification time in nanoseconds.
        inode: inode number.
        sha256: hash that the manifest expects.
        verified: True if the file has this hash, False if the time limit ended the verification.
        seconds: duration of the verification.
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
        """Create an entry.

        Args:
            path: path of the file.
            status: status of the file when it was read.
            facts: size and hash from the manifest.
            verified: whether the file has this hash.
            seconds: duration of the verification.
        """
        return cls(
            str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ino, facts.sha256, verified, seconds
        )

    @property
    def subject(self) -> tuple[str, int, int, int, str]:
        """Values that must be unchanged for the entry to be valid."""
        return self.path, self.size, self.mtime_ns, self.inode, self.sha256


class HashCache:
    """Directory of entries, which any number of processes may use at the same time.

    The cache is optional: a directory that cannot be written and a damaged entry are treated as missing.

    Args:
        folder: the directory, or None for a cache that stores nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of_this_machine(cls) -> HashCache:
        """Return the cache of this user on this machine; it stores nothing if its directory cannot be created."""
        # Machines may share a home directory, but each verifies its own copy of the files.
        return cls(cache_directory_of_this_machine("verified"))

    @property
    def writable(self) -> bool:
        """Whether entries can be stored."""
        return self.folder is not None and os.access(self.folder, os.W_OK | os.X_OK)

    def entry(self, path: Path, facts: FileDigest) -> HashCacheEntry | None:
        """Return the entry of a file, or None if there is no entry for its current state and `facts`."""
        if self.folder is None:
            return None
        entry_path = self._entry_path(path)
        try:
            subject = HashCacheEntry.of(path, path.stat(), facts).subject
            entry: HashCacheEntry = decode_dataclass(json.loads(read_file_bytes(entry_path)), HashCacheEntry, "")
            if entry.subject != subject:
                return None
            with contextlib.suppress(OSError):
                os.utime(entry_path)  # marks the entry as used, for `remove_unused`
        except (OSError, ValueError, RecursionError):
            return None
        return entry

    def keep(self, entry: HashCacheEntry) -> None:
        """Store an entry; it replaces an earlier entry of the same path."""
        if self.folder is None:
            return
        entry_path = self._entry_path(Path(entry.path))
        content = json.dumps(asdict(entry), indent=1) + "\n"
        # After an error, such as a full disk, the next start verifies the file again.
        with contextlib.suppress(OSError), atomic_file(entry_path, shared=True, durable=False) as file:
            file.write(content.encode("utf-8", "surrogateescape"))

    def forget(self, path: Path) -> None:
        """Remove the entry of a file."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self._entry_path(path).unlink()

    def remove_unused(self) -> None:
        """Remove entries that no start has used for SECONDS_UNUSED, and old temporary files of killed processes."""
        if self.folder is None:
            return
        with contextlib.suppress(OSError):
            for entry_path in self.folder.iterdir():
                # Another process may remove the same entry at the same time.
                with contextlib.suppress(OSError):
                    if entry_path.stat().st_mtime < time.time() - SECONDS_UNUSED:
                        entry_path.unlink()

    def _entry_path(self, path: Path) -> Path:
        assert self.folder is not None
        return self.folder / f"{sha256_of(os.fsencode(path.absolute()))[:32]}.json"
