"""files.json: the size and SHA-256 of every file of a checkpoint, written last and checked before anything is read.

The ranks share the work: rank r takes every world-size-th file. Nothing here loads a tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from mindspeed_llm.checkpoints.record import write_text
from mindspeed_llm.errors import CheckpointError

FILE_NAME = "files.json"
FORMAT = "mindspeed_llm.checkpoint_files"
_CHUNK = 1 << 22

Entry = tuple[int, str]


def seal(folder: Path) -> None:
    """Hash every file of a folder that is ready, flush them to the disk, and write files.json. Collective."""
    found = _shared_work(_files_of(folder), folder, flush=True)
    if _rank() == 0:
        entries = {name: {"size": size, "sha256": digest} for name, (size, digest) in sorted(found.items())}
        write_text(folder / FILE_NAME, json.dumps({"format": FORMAT, "files": entries}, indent=1) + "\n")
    _wait()


def damage_of(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, one line each; empty if nothing is, or if it has no files.json
    (another program wrote it). Collective, the same on every rank."""
    try:
        expected = _read(folder)
    except CheckpointError as error:
        return [str(error)]
    if expected is None:
        return []
    missing = [f"{folder / name}: missing" for name in expected if not (folder / name).is_file()]
    present = [name for name in expected if (folder / name).is_file()]
    wrong_size = [name for name in present if (folder / name).stat().st_size != expected[name][0]]
    problems = missing + [
        f"{folder / name}: {(folder / name).stat().st_size:,} bytes, {expected[name][0]:,} were written"
        for name in wrong_size
    ]
    if problems:
        return problems
    found = _shared_work(present, folder, flush=False)
    return [
        f"{folder / name}: its bytes have changed since it was written (SHA-256 differs)"
        for name in present
        if found[name] != expected[name]
    ]


def damage_of_file(folder: Path, name: str) -> str | None:
    """What is wrong with one small file of a checkpoint; None if nothing is, or if the folder has no files.json.
    Every rank looks for itself."""
    try:
        expected = _read(folder)
    except CheckpointError as error:
        return str(error)
    if expected is None or name not in expected:
        return None
    if not (folder / name).is_file():
        return f"{folder / name}: missing"
    if _hashed(folder / name, flush=False) != expected[name]:
        return f"{folder / name}: its bytes have changed since it was written (SHA-256 differs)"
    return None


def _read(folder: Path) -> dict[str, Entry] | None:
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError("not a list of files")
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in raw["files"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in entries):
        raise CheckpointError(f"{path}: damaged (it names files outside the folder)")
    return entries


def _files_of(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != FILE_NAME)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _shared_work(names: list[str], folder: Path, flush: bool) -> dict[str, Entry]:
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    mine = {name: _hashed(folder / name, flush) for name in names[_rank() :: world]}
    if world == 1:
        return mine
    gathered: list[dict[str, Entry]] = [{}] * world
    torch.distributed.all_gather_object(gathered, mine)
    return {name: tuple(entry) for part in gathered for name, entry in part.items()}  # type: ignore[misc]


def _hashed(path: Path, flush: bool) -> Entry:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
        if flush:
            os.fsync(file.fileno())
    return size, digest.hexdigest()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
