"""Compare packed files with their SHA-256 in the manifest, within a time limit.

The SHA-256 of a file cannot be computed in parts, so one thread reads a file, and several threads read several files.
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

# Share of the time limit. A file that was read for longer and not finished will probably not be finished next time.
NEARLY_ALL = 0.9
# Interval of the queries whether another process has detected damage, which go through torchrun's store.
SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class HashedFile:
    """A file with its expected size and hash.

    Attributes:
        path: path of the file.
        facts: size and hash from the manifest.
    """

    path: Path
    facts: FileDigest


class _StoppedError(Exception):
    """The time limit has been reached, or damage has been detected in another file."""


def verification_order(files: Sequence[HashedFile], cache: HashCache, seconds: float) -> list[int]:
    """Return the files to verify, in the order of their verification.

    Files that the last start did not finish are first, then the files without an entry in the cache; within each
    group, the smallest file is first. A file that was not finished in nearly the complete time limit is last, because
    it would prevent the verification of all others.

    Args:
        files: all files.
        cache: results of earlier verifications.
        seconds: time limit. If it is infinite, all files are verified and the cache is not used.

    Returns:
        Indices into `files`.
    """
    if math.isinf(seconds):
        # All files will be read, so the largest first: with several threads this gives the shortest total time.
        return sorted(range(len(files)), key=lambda number: -files[number].facts.size)
    priorities = {}
    for number, file in enumerate(files):
        entry = cache.entry(file.path, file.facts)
        if entry is None:
            priorities[number] = 1, file.facts.size
        elif not entry.verified:
            priorities[number] = 2 if entry.seconds >= NEARLY_ALL * seconds else 0, file.facts.size
    return sorted(priorities, key=lambda number: priorities[number])


def verify_files(
    files: Sequence[HashedFile],
    cache: HashCache | None = None,
    seconds: float = math.inf,
    numbers: Callable[[], int | None] | None = None,
    halted: Callable[[], bool] = lambda: False,
    threads: int = MOST_THREADS,
) -> list[HashedFile]:
    """Read files and compare their hashes with the expected hashes.

    Args:
        files: all files.
        cache: cache that stores the results; None for no cache.
        seconds: time limit.
        numbers: function that returns the index of the next file to verify, or None at the end. Several threads call
            it at the same time. The default goes through all files.
        halted: function that returns whether another process has detected damage, which ends the verification.
        threads: number of files that are read at the same time.

    Returns:
        The files from `numbers` that were not finished within the time limit.

    Raises:
        DataError: A file has another hash or cannot be read. The message names all such files.
    """
    verification = _Verification(cache or HashCache(None), seconds, halted)
    take = numbers or _shared_iterator(range(len(files)))

    def work() -> list[HashedFile]:
        not_finished = []
        while (number := take()) is not None:
            if not verification.verify(files[number]):
                not_finished.append(files[number])
        return not_finished

    with ThreadPoolExecutor(threads, thread_name_prefix="hashes") as pool:
        workers = [pool.submit(work) for _ in range(threads)]
        try:
            unfinished = [file for worker in workers for file in worker.result()]
        finally:
            # The pool waits for its threads; after Ctrl-C they must not read their files to the end.
            verification.stopping.set()
    if verification.problems:
        raise DataError("\n".join(sorted(verification.problems)))
    return unfinished


class _Verification:
    """State that the threads of one verification share.

    Attributes:
        problems: messages about damaged files.
        stopping: set when the threads are to stop.
    """

    def __init__(self, cache: HashCache, seconds: float, halted: Callable[[], bool]) -> None:
        self.problems: list[str] = []
        self.stopping = threading.Event()
        self._cache = cache
        self._ends = time.monotonic() + seconds
        self._halted = halted
        self._next_query = 0.0

    def verify(self, file: HashedFile) -> bool:
        """Verify a file. Return False if it was not finished."""
        began = time.monotonic()
        try:
            status = file.path.stat()
            digest = FileDigest.of(file.path, self._check_stop)
            after = file.path.stat()
        except _StoppedError:
            seconds = time.monotonic() - began
            # An entry is useful only if the time limit ended this file: not after an error in another file or Ctrl-C,
            # and not if the limit had already been reached.
            if not self.stopping.is_set() and began < self._ends:
                self._cache.keep(HashCacheEntry.of(file.path, status, file.facts, seconds=seconds))
            return False
        except OSError as error:
            self._add_problem(f"{file.path}: cannot be read ({error.strerror or error})")
            return True
        if digest.sha256 != file.facts.sha256:
            # There may be an entry from before a write that preserved size and modification time.
            self._cache.forget(file.path)
            self._add_problem(f"{file.path}: its bytes differ from those that were written: {PREPROCESS_AGAIN}")
        # A file that was modified while it was read gets no entry: its hash belongs to neither state.
        elif (status.st_mtime_ns, status.st_size, status.st_ino) == (after.st_mtime_ns, after.st_size, after.st_ino):
            seconds = time.monotonic() - began
            self._cache.keep(HashCacheEntry.of(file.path, status, file.facts, verified=True, seconds=seconds))
        return True

    def _add_problem(self, problem: str) -> None:
        self.problems.append(problem)
        self.stopping.set()

    def _check_stop(self) -> None:
        """Raise _StoppedError if the verification is to stop; called before each block of a file."""
        now = time.monotonic()
        if now >= self._next_query:
            self._next_query = now + SECONDS_BETWEEN_LOOKS
            if self._halted():
                self.stopping.set()
        if self.stopping.is_set() or now >= self._ends:
            raise _StoppedError


def _shared_iterator(numbers: Iterable[int]) -> Callable[[], int | None]:
    """Return a thread-safe function that returns each number once, and then None."""
    remaining, lock = iter(numbers), threading.Lock()

    def take() -> int | None:
        with lock:
            return next(remaining, None)

    return take


def hash_threads(ranks: int) -> int:
    """Return the number of files that a rank reads at the same time if `ranks` ranks share the processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, processors // ranks))
