"""Write and check files.json: size and SHA-256 of every file of a checkpoint.

A save writes it last, and a start checks it first. This module works in one process; `checkpoints.integrity` divides
the work among the ranks of a run.
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
    """Read files.json of a checkpoint.

    Args:
        folder: the iter_ folder.

    Returns:
        Path relative to the folder → size and SHA-256; None if another program wrote the checkpoint.

    Raises:
        CheckpointError: files.json is damaged, or is missing although this program wrote the checkpoint.
    """
    path = folder / FILES
    if is_unsealed(folder):
        raise CheckpointError(f"{path}: missing, although this program wrote the checkpoint (run.json is there)")
    try:
        with open(path, encoding="utf-8", opener=regular_file_opener) as file:
            raw = json.load(file)
        if raw["format"] != FORMAT:
            raise ValueError("not a list of checkpoint files")
        entries = {name: _entry(entry) for name, entry in raw["files"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged ({str(error)[:200]}); restore it, or use another checkpoint") from error
    # The file may be untrusted, and its names are opened and hashed.
    if not all(_inside(name) for name in entries):
        raise CheckpointError(f"{path}: damaged (it names files outside the folder); use another checkpoint")
    return entries


def write_file_list(folder: Path, files: Mapping[str, FileDigest]) -> None:
    """Write files.json atomically.

    Args:
        folder: the directory of the checkpoint.
        files: path relative to the folder → size and SHA-256.
    """
    entries = {name: asdict(files[name]) for name in sorted(files)}
    write_atomically(folder / FILES, (json.dumps({"format": FORMAT, "files": entries}, indent=1) + "\n").encode())


def is_unsealed(folder: Path) -> bool:
    """Return whether a checkpoint was written by this program, but its files.json is gone."""
    return (folder / RECORD).exists() and not (folder / FILES).exists()


def _entry(entry: dict[str, Any]) -> FileDigest:
    size, digest = entry["size"], entry["sha256"]
    # `type` instead of isinstance: True is an instance of int.
    if (
        type(size) is not int
        or not 0 <= size < 1 << 63
        or type(digest) is not str
        or not re.fullmatch("[0-9a-f]{64}", digest)
    ):
        raise ValueError("an entry without a valid size and SHA-256")
    return FileDigest(size, digest)


def _inside(name: str) -> bool:
    """Return whether a name is a relative path below the folder, as `write_file_list` writes it."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def missing_or_truncated_files(folder: Path, expected: dict[str, FileDigest]) -> list[str]:
    """Compare the files of a checkpoint with files.json without reading them.

    Args:
        folder: the directory of the checkpoint.
        expected: from `read_file_list`.

    Returns:
        One line for each file that is missing or has another size; empty if there is none.
    """
    missing, wrong_size = [], []
    for name, digest in expected.items():
        path = folder / name
        try:
            status = path.stat()
        except OSError as error:
            # Not only missing files: a name in a damaged list may be too long for any file.
            gone = isinstance(error, FileNotFoundError | NotADirectoryError)
            missing.append(f"{path}: {'missing' if gone else f'cannot be read ({error.strerror or error})'}")
            continue
        if not stat.S_ISREG(status.st_mode):
            missing.append(f"{path}: not a file")
        elif status.st_size != digest.size:
            wrong_size.append(f"{path}: {status.st_size:,} bytes, {digest.size:,} were written")
    return missing + wrong_size


def changed_files(folder: Path, expected: dict[str, FileDigest], actual: dict[str, FileDigest]) -> list[str]:
    """Compare the hashes of files with files.json.

    Args:
        folder: the directory of the checkpoint.
        expected: from `read_file_list`.
        actual: the digests of the same files, as they are now.

    Returns:
        One line for each damaged file.
    """
    return [
        f"{folder / name}: its bytes have changed since it was written (SHA-256 differs)"
        for name in expected
        if actual[name] != expected[name]
    ]


def check_hashes(folder: Path) -> None:
    """Check all files of a checkpoint against files.json. A checkpoint without files.json passes.

    Raises:
        CheckpointError: A file is missing or damaged. The message names the first such file.
    """
    expected = read_file_list(folder)
    if expected is None:
        return
    damage = missing_or_truncated_files(folder, expected)
    if not damage:
        try:
            actual = hash_files(folder, list(expected))
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error
        damage = changed_files(folder, expected, actual)
    if damage:
        raise CheckpointError(f"{damage[0]}; restore the file, or convert another checkpoint")


def damage_of_file(folder: Path, name: str) -> str | None:
    """Check one small file of a checkpoint against files.json.

    Args:
        folder: the directory of the checkpoint.
        name: path relative to the folder.

    Returns:
        One line about the damaged file; None if it is intact, or if the folder has no files.json.
    """
    try:
        expected = read_file_list(folder)
    except CheckpointError as error:
        return str(error)
    if expected is None or name not in expected:
        return None
    entry = {name: expected[name]}
    damage = missing_or_truncated_files(folder, entry) or changed_files(
        folder, entry, {name: FileDigest.of(folder / name)}
    )
    return damage[0] if damage else None


def refuse_unsealed(folder: Path) -> None:
    """Check that a checkpoint of this program still has its files.json.

    If files.json proves damage, the run resumes from an older checkpoint by itself. If files.json is gone, nothing is
    known about the other files, and somebody has removed it, so a person must decide.

    Raises:
        CheckpointError: files.json is missing. The message lists what the user can do.
    """
    if is_unsealed(folder):
        raise CheckpointError(
            f"{folder / FILES}: missing, so the files of this checkpoint cannot be checked (its run.json shows that "
            "this program wrote it). Restore it from a copy; or write the number of another checkpoint into the "
            "tracker in the directory above; or, to use the weights unchecked, remove run.json as well and start with "
            "--load and --finetune"
        )
