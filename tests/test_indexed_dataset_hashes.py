"""Comparing files with their hashes: in what order, within what time, and what is remembered of it."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path

import pytest

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import HashCache, HashedFile, verify_files
from mindspeed_llm.indexed_dataset.hash_cache import SECONDS_UNUSED, HashCacheEntry
from mindspeed_llm.indexed_dataset.hash_verification import verification_order
from mindspeed_llm.storage.hashing import BYTES_AT_ONCE, FileDigest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HashCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return HashCache.of_this_machine()


def files_of(tmp_path: Path, *sizes: int) -> list[HashedFile]:
    files = []
    for number, size in enumerate(sizes):
        path = tmp_path / f"file{number}"
        path.write_bytes(bytes([number]) * size)
        files.append(HashedFile(path, FileDigest.of(path)))
    return files


# --- Order and time limit ---------------------------------------------------------------------------------------------


def test_the_order_of_a_check(tmp_path: Path, cache: HashCache) -> None:
    files = files_of(tmp_path, 50, 10, 40, 20, 30)
    assert verification_order(files, cache, 60) == [1, 3, 4, 2, 0], "the smallest first"

    def known(number: int, verified: bool, seconds: float) -> None:
        file = files[number]
        cache.keep(HashCacheEntry.of(file.path, file.path.stat(), file.facts, verified, seconds))

    known(1, True, 1.0)
    known(0, False, 3.0)
    assert verification_order(files, cache, 60) == [0, 3, 4, 2], "what was cut short comes first"
    known(2, False, 59.9)
    assert verification_order(files, cache, 60) == [0, 3, 4, 2], "what the whole limit was not enough for comes last"
    assert verification_order(files, cache, 600) == [2, 0, 3, 4]
    assert verification_order(files, cache, math.inf) == [0, 2, 4, 3, 1], "all of them"


def test_a_file_not_checked_in_time_is_checked_first_next_time(tmp_path: Path, cache: HashCache) -> None:
    files = files_of(tmp_path, 10, 3 * BYTES_AT_ONCE, 20)

    def slow() -> bool:  # asked before the first block: the time is over when the second one is to be read
        time.sleep(0.1)
        return False

    left = verify_files(files, cache, 0.05, iter([1, 0, 2, None]).__next__, slow, threads=1)
    assert left == [files[1], files[0], files[2]]
    assert verification_order(files, cache, 60) == [1, 0, 2]
    assert verify_files(files, cache) == [] and verification_order(files, cache, 60) == []


def test_damage_and_files_that_are_gone_are_named_together(tmp_path: Path) -> None:
    files = files_of(tmp_path, 10, 20, 30)
    files[1].path.write_bytes(b"x" * 20)
    with pytest.raises(DataError, match=r"file1: its bytes differ"):
        verify_files(files)
    files[1].path.unlink()
    with pytest.raises(DataError, match=r"file1: cannot be read \(No such file"):
        verify_files(files, threads=1)
    assert verify_files(files[:1] + files[2:], halted=lambda: True) == files[:1] + files[2:], "another found damage"


# --- What is remembered -----------------------------------------------------------------------------------------------


def test_a_cache_entry_is_valid_for_one_unchanged_file(tmp_path: Path, cache: HashCache) -> None:
    (file,) = files_of(tmp_path, 100)
    assert cache.folder is not None and cache.folder.is_relative_to(tmp_path / "cache" / "mindspeed_llm")
    verify_files([file], cache)
    entry = cache.entry(file.path, file.facts)
    assert entry is not None and entry.verified
    assert cache.entry(file.path, FileDigest(100, "0" * 64)) is None, "another hash is expected"
    os.utime(file.path, ns=(1, 1))
    assert cache.entry(file.path, file.facts) is None, "another time"
    os.utime(file.path, ns=(entry.mtime_ns, entry.mtime_ns))
    assert cache.entry(file.path, file.facts) == entry
    copy = tmp_path / "copy"
    copy.write_bytes(file.path.read_bytes())
    os.utime(copy, ns=(entry.mtime_ns, entry.mtime_ns))
    copy.replace(file.path)
    assert cache.entry(file.path, file.facts) is None, "another inode"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"path": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_cache_entry_is_ignored(tmp_path: Path, cache: HashCache, damage: bytes) -> None:
    (file,) = files_of(tmp_path, 100)
    verify_files([file], cache)
    assert cache.folder is not None
    (place,) = cache.folder.iterdir()
    place.write_bytes(damage)
    assert cache.entry(file.path, file.facts) is None
    assert verify_files([file], cache) == [] and cache.entry(file.path, file.facts) is not None


def test_processes_write_the_same_entry(tmp_path: Path, cache: HashCache) -> None:
    (file,) = files_of(tmp_path, 100)
    assert cache.folder is not None
    entries = [HashCacheEntry.of(file.path, file.path.stat(), file.facts, True, float(n)) for n in range(4)]
    threads = [threading.Thread(target=lambda e=entry: [cache.keep(e) for _ in range(50)]) for entry in entries]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert cache.entry(file.path, file.facts) in [None, *entries]
    (place,) = cache.folder.iterdir()
    assert json.loads(place.read_bytes())["sha256"] == file.facts.sha256


def test_without_a_cache_directory_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = HashCache.of_this_machine()
    files = files_of(tmp_path, 100)
    assert (
        not cache.writable and verify_files(files, cache) == [] and cache.entry(files[0].path, files[0].facts) is None
    )
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # means nothing
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = HashCache.of_this_machine().folder
    assert folder is not None and folder.is_relative_to(tmp_path / "home" / ".cache")


def test_unused_cache_entries_are_removed(tmp_path: Path, cache: HashCache) -> None:
    files = files_of(tmp_path, 10, 20)
    verify_files(files, cache)
    assert cache.folder is not None
    for place in cache.folder.iterdir():
        os.utime(place, (0, time.time() - 2 * SECONDS_UNUSED))
    assert cache.entry(files[0].path, files[0].facts) is not None
    cache.remove_unused()
    assert len(list(cache.folder.iterdir())) == 1
