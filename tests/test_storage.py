"""Files and folders that are replaced as a whole, and which checkpoint a conversion takes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from mindspeed_llm.storage import atomic_write
from mindspeed_llm.storage.atomic_write import atomic_file, atomic_folder
from mindspeed_llm.storage.checkpoint_directory import TRACKER, CheckpointDirectory, LatestIterationFile
from mindspeed_llm.storage.hashing import BYTES_AT_ONCE, FileDigest, HashingFile, hash_files, sha256_of


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path, shared: bool, durable: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path, shared, durable) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]  # noqa: PTH208


@pytest.mark.parametrize("shared", [False, True])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic_write.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), atomic_file(path, shared) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_two_writers_of_one_file_do_not_interfere(tmp_path: Path) -> None:
    """A child of this process, and this process in the middle of its own block."""
    path = tmp_path / "file"
    with atomic_file(path, shared=True) as file:
        file.write(b"first")
        child = os.fork()
        if child == 0:
            with atomic_file(path, shared=True) as other:
                other.write(b"second")
            os._exit(0)
        os.waitpid(child, 0)
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_a_folder_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic_folder(target) as folder:
            (folder / content).touch()
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["folder"]  # noqa: PTH208
    with pytest.raises(ValueError), atomic_folder(target) as folder:
        (folder / "newer").touch()
        raise ValueError
    assert os.listdir(target) == ["new"] and os.listdir(tmp_path) == ["folder"]  # noqa: PTH208


def test_a_hash_is_that_of_the_bytes_read_or_written(tmp_path: Path) -> None:
    contents = {"empty": b"", "one": b"x", "blocks": os.urandom(2 * BYTES_AT_ONCE + 3)}
    for name, content in contents.items():
        writing = HashingFile(tmp_path / name)
        writing.write(content)
        facts = writing.finish()
        assert facts == FileDigest(len(content), hashlib.sha256(content).hexdigest())
        assert facts.sha256 == sha256_of(content)
        assert FileDigest.of(tmp_path / name, flush_to_disk=True) == facts
    assert hash_files(tmp_path, list(contents)) == {name: FileDigest.of(tmp_path / name) for name in contents}


def test_a_conversion_uses_the_checkpoint_that_a_run_would_resume_from(tmp_path: Path) -> None:
    """Also where a save was stopped when all but the tracker was in place."""
    from mindspeed_llm.conversion import latest_checkpoint

    directory = CheckpointDirectory(tmp_path)
    for iteration in (1, 2):
        directory.iteration_path(iteration).mkdir()
    LatestIterationFile(tmp_path).write(1)
    assert latest_checkpoint(tmp_path) == directory.newest() == directory.iteration_path(1)
    LatestIterationFile(tmp_path).prepare(2)
    assert latest_checkpoint(tmp_path) == directory.newest() == directory.iteration_path(2)
    later = (tmp_path / f"{TRACKER}.tmp").stat().st_mtime_ns + 1_000_000_000
    os.utime(tmp_path / TRACKER, ns=(later, later))  # somebody wrote it since
    assert latest_checkpoint(tmp_path) == directory.newest() == directory.iteration_path(1)
