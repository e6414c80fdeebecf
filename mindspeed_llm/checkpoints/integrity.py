"""files.json: the size and SHA-256 of every file of a checkpoint, written last and checked before anything is read.

The ranks share the work: rank r takes every world-size-th file. Nothing here loads a tensor.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.atomic import write_text
from mindspeed_llm.storage.checkpoint_files import (
    FILE_NAME,
    FORMAT,
    Entry,
    changed,
    hashed,
    is_unsealed,
    missing_or_cut,
    read_list,
)


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
        expected = read_list(folder)
    except CheckpointError as error:
        return [str(error)]
    if expected is None:
        return []
    problems = missing_or_cut(folder, expected)
    return problems or changed(folder, expected, _shared_work(list(expected), folder, flush=False))


def damage_of_file(folder: Path, name: str) -> str | None:
    """What is wrong with one small file of a checkpoint; None if nothing is, or if the folder has no files.json.
    Every rank looks for itself."""
    try:
        expected = read_list(folder)
    except CheckpointError as error:
        return str(error)
    if expected is None or name not in expected:
        return None
    alone = {name: expected[name]}
    damage = missing_or_cut(folder, alone) or changed(folder, alone, {name: hashed(folder / name)})
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
            f"{folder / FILE_NAME}: missing, so nothing tells whether the files of this checkpoint are what this "
            "program wrote (run.json says that it did). Restore it from a copy; or write the number of another "
            "checkpoint into the tracker beside it; or, to take the weights unchecked, remove run.json as well and "
            "start with --load and --finetune"
        )


def _files_of(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != FILE_NAME)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _shared_work(names: list[str], folder: Path, flush: bool) -> dict[str, Entry]:
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    mine = {name: hashed(folder / name, flush) for name in names[_rank() :: world]}
    if world == 1:
        return mine
    gathered: list[dict[str, Entry]] = [{}] * world
    torch.distributed.all_gather_object(gathered, mine)
    return {name: tuple(entry) for part in gathered for name, entry in part.items()}  # type: ignore[misc]


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
