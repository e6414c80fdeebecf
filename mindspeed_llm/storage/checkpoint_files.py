"""files.json: the size and SHA-256 of every file of a checkpoint; a save writes it last, and it is checked first.

Here is what one process can do alone; `checkpoints.integrity` shares the work among the ranks of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.opening import only_files

FILE_NAME = "files.json"
RECORD = "run.json"  # this program writes it into a checkpoint before the list; others do not
FORMAT = "mindspeed_llm.checkpoint_files"
_CHUNK = 1 << 22
_THREADS = 4  # hashing lets other threads run

Entry = tuple[int, str]


def read_list(folder: Path) -> dict[str, Entry] | None:
    """Name → (size, SHA-256) of every file; None if another program wrote the checkpoint.

    Raises:
        CheckpointError: the list itself is damaged, or is missing although this program wrote the checkpoint.
    """
    path = folder / FILE_NAME
    if is_unsealed(folder):
        raise CheckpointError(f"{path}: missing, although this program wrote the checkpoint (run.json is there)")
    try:
        with open(path, encoding="utf-8", opener=only_files) as file:
            raw = json.load(file)
        if raw["format"] != FORMAT:
            raise ValueError("not a list of files")
        entries = {name: _entry(entry) for name, entry in raw["files"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({str(error)[:200]}); restore it, or use another checkpoint") from error
    if not all(_inside(name) for name in entries):
        raise CheckpointError(f"{path}: damaged (it names files outside the folder); use another checkpoint")
    return entries


def is_unsealed(folder: Path) -> bool:
    """Whether a checkpoint was written by this program, but its list of files is gone."""
    return (folder / RECORD).exists() and not (folder / FILE_NAME).exists()


def _entry(entry: dict[str, Any]) -> Entry:
    size, digest = entry["size"], entry["sha256"]
    if (
        type(size) is not int
        or not 0 <= size < 1 << 63
        or type(digest) is not str
        or not re.fullmatch("[0-9a-f]{64}", digest)
    ):
        raise ValueError("a size or a hash that is none")
    return size, digest


def _inside(name: str) -> bool:
    """Whether this is the path of a file below the folder, as `seal` writes it."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def missing_or_cut(folder: Path, expected: dict[str, Entry]) -> list[str]:
    """What is wrong with files without reading them, one line each: they are not there, or have another size."""
    missing, wrong_size = [], []
    for name, (size, _) in expected.items():
        path = folder / name
        try:
            status = path.stat()
        except OSError as error:  # also a name that no file can have
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            missing.append(f"{path}: {'missing' if gone else f'cannot be read ({error.strerror or error})'}")
            continue
        if not stat.S_ISREG(status.st_mode):
            missing.append(f"{path}: not a file")
        elif status.st_size != size:
            wrong_size.append(f"{path}: {status.st_size:,} bytes, {size:,} were written")
    return missing + wrong_size


def changed(folder: Path, expected: dict[str, Entry], found: dict[str, Entry]) -> list[str]:
    """Files whose bytes are not those that were written, one line each."""
    return [
        f"{folder / name}: its bytes have changed since it was written (SHA-256 differs)"
        for name in expected
        if found[name] != expected[name]
    ]


def hashed(path: Path, flush: bool = False) -> Entry:
    """Size and SHA-256 of a file; `flush` brings it to the disk, too."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if flush:
            os.fsync(file.fileno())
    return size, digest.hexdigest()


def check_hashes(folder: Path) -> None:
    """Refuse a checkpoint whose files are not what was written; one without a list passes.

    Raises:
        CheckpointError: naming the first file that is damaged.
    """
    expected = read_list(folder)
    if expected is None:
        return
    damage = missing_or_cut(folder, expected)
    if not damage:
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                found = dict(zip(expected, threads.map(lambda name: hashed(folder / name), expected), strict=True))
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
        damage = changed(folder, expected, found)
    if damage:
        raise CheckpointError(f"{damage[0]}; restore the file, or convert another checkpoint")
