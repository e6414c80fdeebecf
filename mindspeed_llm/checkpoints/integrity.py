"""files.json: the size and SHA-256 of every file of a checkpoint, written last and checked before anything is read.

The ranks share the work: rank r takes every world-size-th file. Nothing here loads a tensor.
"""

from __future__ import annotations

from pathlib import Path

import torch

from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.checkpoint_directory import FILES
from mindspeed_llm.storage.checkpoint_file_list import (
    changed_files,
    missing_or_truncated_files,
    read_file_list,
    write_file_list,
)
from mindspeed_llm.storage.hashing import FileDigest


def seal_checkpoint(folder: Path) -> None:
    """Hash every file of a folder that is ready, flush them to the disk, and write files.json. Collective."""
    found = _shared_work(_files_of(folder), folder, flush=True)
    if _rank() == 0:
        write_file_list(folder, found)
    _wait()


def find_damage(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, one line each; empty if nothing is, or if it has no files.json
    (another program wrote it). Collective, the same on every rank."""
    try:
        expected = read_file_list(folder)
    except CheckpointError as error:
        return [str(error)]
    if expected is None:
        return []
    problems = missing_or_truncated_files(folder, expected)
    return problems or changed_files(folder, expected, _shared_work(list(expected), folder, flush=False))


def _files_of(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != FILES)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _shared_work(names: list[str], folder: Path, flush: bool) -> dict[str, FileDigest]:
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    mine = {name: FileDigest.of(folder / name, flush_to_disk=flush) for name in names[_rank() :: world]}
    if world == 1:
        return mine
    gathered: list[dict[str, FileDigest]] = [{}] * world
    torch.distributed.all_gather_object(gathered, mine)
    return {name: facts for part in gathered for name, facts in part.items()}


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
