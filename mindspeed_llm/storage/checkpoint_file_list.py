"""files.json: the size and SHA-256 of every file of a checkpoint; a save writes it last, and it is checked first.

This module is for one process; `checkpoints.integrity` shares the work among the ranks of a run.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.atomic_write import write_atomically
from mindspeed_llm.storage.checkpoint_directory import FILES, RECORD
from mindspeed_llm.storage.hashing import FileDigest, hash_files
from mindspeed_llm.storage.safe_open import regular_file_opener

FORMAT = "mindspeed_llm.checkpoint_files"


def read_file_list(folder: Path) -> dict[str, FileDigest] | None:
    """Size and SHA-256 of every file by name; None if another program wrote the checkpoint.

    Raises:
        CheckpointError: the list itself is damaged, or is missing although this program wrote the checkpoint.
    """
    path = folder / FILES
    if is_unsealed(folder):
        raise CheckpointError(f"{path}: missing, although this program wrote the checkpoint (run.json is there)")
    try:
        with open(path, encoding="utf-8", opener=regular_file_opener) as file:
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


def write_file_list(folder: Path, files: Mapping[str, FileDigest]) -> None:
    """Write files.json, whole or not at all."""
    entries = {name: asdict(files[name]) for name in sorted(files)}
    write_atomically(folder / FILES, (json.dumps({"format": FORMAT, "files": entries}, indent=1) + "\n").encode())


def is_unsealed(folder: Path) -> bool:
    """Whether a checkpoint was written by this program, but its list of files is gone."""
    return (folder / RECORD).exists() and not (folder / FILES).exists()


def _entry(entry: dict[str, Any]) -> FileDigest:
    size, digest = entry["size"], entry["sha256"]
    if (
        type(size) is not int
        or not 0 <= size < 1 << 63
        or type(digest) is not str
        or not re.fullmatch("[0-9a-f]{64}", digest)
    ):
        raise ValueError("a size or a hash that is none")
    return FileDigest(size, digest)


def _inside(name: str) -> bool:
    """Whether this is the path of a file below the folder, as `write_file_list` writes it."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def missing_or_truncated_files(folder: Path, expected: dict[str, FileDigest]) -> list[str]:
    """What is wrong with files without reading them, one line each: they are not there, or have another size."""
    missing, wrong_size = [], []
    for name, facts in expected.items():
        path = folder / name
        try:
            status = path.stat()
        except OSError as error:  # also a name that no file can have
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            missing.append(f"{path}: {'missing' if gone else f'cannot be read ({error.strerror or error})'}")
            continue
        if not stat.S_ISREG(status.st_mode):
            missing.append(f"{path}: not a file")
        elif status.st_size != facts.size:
            wrong_size.append(f"{path}: {status.st_size:,} bytes, {facts.size:,} were written")
    return missing + wrong_size


def changed_files(folder: Path, expected: dict[str, FileDigest], found: dict[str, FileDigest]) -> list[str]:
    """Files whose bytes are not those that were written, one line each."""
    return [
        f"{folder / name}: its bytes have changed since it was written (SHA-256 differs)"
        for name in expected
        if found[name] != expected[name]
    ]


def check_hashes(folder: Path) -> None:
    """Refuse a checkpoint whose files are not what was written; one without a list passes.

    Raises:
        CheckpointError: naming the first file that is damaged.
    """
    expected = read_file_list(folder)
    if expected is None:
        return
    damage = missing_or_truncated_files(folder, expected)
    if not damage:
        try:
            found = hash_files(folder, list(expected))
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
        damage = changed_files(folder, expected, found)
    if damage:
        raise CheckpointError(f"{damage[0]}; restore the file, or convert another checkpoint")


def damage_of_file(folder: Path, name: str) -> str | None:
    """What is wrong with one small file of a checkpoint; None if nothing is, or if the folder has no files.json."""
    try:
        expected = read_file_list(folder)
    except CheckpointError as error:
        return str(error)
    if expected is None or name not in expected:
        return None
    alone = {name: expected[name]}
    damage = missing_or_truncated_files(folder, alone) or changed_files(
        folder, alone, {name: FileDigest.of(folder / name)}
    )
    return damage[0] if damage else None


def refuse_unsealed(folder: Path) -> None:
    """Refuse a checkpoint of this program whose list of files is gone.

    Damage that the list proves is a reason to continue from an older checkpoint. Without the list nothing is known, and
    it does not go missing by itself, so a person is to decide.

    Raises:
        CheckpointError: with what can be done.
    """
    if is_unsealed(folder):
        raise CheckpointError(
            f"{folder / FILES}: missing, so nothing tells whether the files of this checkpoint are what this "
            "program wrote (run.json says that it did). Restore it from a copy; or write the number of another "
            "checkpoint into the tracker beside it; or, to take the weights unchecked, remove run.json as well and "
            "start with --load and --finetune"
        )
