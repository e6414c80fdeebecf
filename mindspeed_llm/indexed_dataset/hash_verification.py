"""Compare packed files with the SHA-256 that their manifest has of them, within a time limit.

SHA-256 of a file cannot be split, so a file is read by one thread, and several files by as many threads.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset.hash_cache import HashCache, HashCacheEntry
from mindspeed_llm.indexed_dataset.idx_header import PREPROCESS_AGAIN
from mindspeed_llm.storage.hashing import MOST_THREADS, FileDigest

# A file that had nearly the whole limit to itself is not likely to be finished within it.
NEARLY_ALL = 0.9
# How often a check asks whether another process has found damage.
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class HashedFile:
    """A file, and the size and hash that its manifest has of it."""

    path: Path
    facts: FileDigest


class _StoppedError(Exception):
    """The time is over, or damage has been found elsewhere."""


def verification_order(files: Sequence[HashedFile], cache: HashCache, seconds: float) -> list[int]:
    """Numbers of the files that are to be checked, those that come first at the front.

    Files that the last start did not finish come first, then the others, the smallest first. A file that nearly the
    whole limit was not enough for comes last, or it would keep all others from being checked.

    Args:
        seconds: the time limit; infinite: every file is checked, whatever the cache says.
    """
    if math.isinf(seconds):
        return sorted(range(len(files)), key=lambda number: -files[number].facts.size)
    places = {}
    for number, file in enumerate(files):
        entry = cache.entry(file.path, file.facts)
        if entry is None:
            places[number] = 1, file.facts.size
        elif not entry.verified:
            places[number] = 2 if entry.seconds >= NEARLY_ALL * seconds else 0, file.facts.size
    return sorted(places, key=lambda number: places[number])


def verify_files(
    files: Sequence[HashedFile],
    cache: HashCache | None = None,
    seconds: float = math.inf,
    numbers: Callable[[], int | None] | None = None,
    halted: Callable[[], bool] = lambda: False,
    threads: int = MOST_THREADS,
) -> list[HashedFile]:
    """Read files and compare their hashes with the expected ones.

    Args:
        files: what `numbers` counts.
        cache: is told of the results.
        seconds: the time limit.
        numbers: gives the number of the next file to check, None when there is none left; called by several threads
            at a time. By default all files in turn.
        halted: whether another process has found damage, so that nothing is left to do.
        threads: files that are read at a time.

    Returns:
        the files that `numbers` gave and that there was no time for.

    Raises:
        DataError: naming each file that has another hash, or that cannot be read.
    """
    check = _Check(cache or HashCache(None), seconds, halted)
    take = numbers or _in_turn(range(len(files)))

    def work() -> list[HashedFile]:
        left = []
        while (number := take()) is not None:
            if not check.one(files[number]):
                left.append(files[number])
        return left

    with ThreadPoolExecutor(threads, thread_name_prefix="hashes") as pool:
        working = [pool.submit(work) for _ in range(threads)]
        try:
            unfinished = [file for one in working for file in one.result()]
        finally:  # Ctrl-C, for example: no thread goes on reading
            check.stopping.set()
    if check.problems:
        raise DataError("\n".join(sorted(check.problems)))
    return unfinished


class _Check:
    """One check: its time limit, what has been found, and whether to go on."""

    def __init__(self, cache: HashCache, seconds: float, halted: Callable[[], bool]) -> None:
        self.problems: list[str] = []
        self.stopping = threading.Event()
        self._cache = cache
        self._ends = time.monotonic() + seconds
        self._halted = halted
        self._looks_at = 0.0

    def one(self, file: HashedFile) -> bool:
        """Check a file; False if there was no time to finish it."""
        began = time.monotonic()
        try:
            status = file.path.stat()
            found = FileDigest.of(file.path, self._go_on)
            after = file.path.stat()
        except _StoppedError:
            seconds = time.monotonic() - began
            if not self.stopping.is_set() and began < self._ends:
                self._cache.keep(HashCacheEntry.of(file.path, status, file.facts, seconds=seconds))
            return False
        except OSError as error:
            self._found(f"{file.path}: cannot be read ({error.strerror or error})")
            return True
        if found.sha256 != file.facts.sha256:
            self._cache.forget(file.path)  # an entry from before a write that kept size and time
            self._found(f"{file.path}: its bytes differ from those that were written: {PREPROCESS_AGAIN}")
        elif (status.st_mtime_ns, status.st_size, status.st_ino) == (after.st_mtime_ns, after.st_size, after.st_ino):
            seconds = time.monotonic() - began
            self._cache.keep(HashCacheEntry.of(file.path, status, file.facts, verified=True, seconds=seconds))
        return True

    def _found(self, problem: str) -> None:
        self.problems.append(problem)
        self.stopping.set()

    def _go_on(self) -> None:
        now = time.monotonic()
        if now >= self._looks_at:
            self._looks_at = now + SECONDS_BETWEEN_LOOKS
            if self._halted():
                self.stopping.set()
        if self.stopping.is_set() or now >= self._ends:
            raise _StoppedError


def _in_turn(numbers: Iterable[int]) -> Callable[[], int | None]:
    """A function that gives each number to one caller, whatever thread it is in, and then None."""
    rest, lock = iter(numbers), threading.Lock()

    def take() -> int | None:
        with lock:
            return next(rest, None)

    return take


def hash_threads(ranks: int) -> int:
    """How many files a rank reads at a time if `ranks` of them share this machine's processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, processors // ranks))
