"""Seal a checkpoint with files.json, and check its files before any of them is read.

files.json has the size and SHA-256 of every file. The ranks divide the work: rank r takes every world-size-th file. No
tensor is loaded here.
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
    """Hash all files of a complete checkpoint, flush them to the disk, and write files.json. Collective.

    Args:
        folder: the directory of the checkpoint, on storage that all ranks share.
    """
    # One read serves both: a file must be on the disk before files.json confirms its content.
    digests = _hash_on_all_ranks(_files_of(folder), folder, flush=True)
    if _rank() == 0:
        write_file_list(folder, digests)
    _wait()


def find_damage(folder: Path) -> list[str]:
    """Check all files of a checkpoint against files.json. Collective, with the same result on every rank.

    Args:
        folder: the directory of the checkpoint.

    Returns:
        One line for each damaged file; empty if all files are intact, or if there is no files.json because another
        program wrote the checkpoint.
    """
    try:
        expected = read_file_list(folder)
    except CheckpointError as error:
        return [str(error)]
    if expected is None:
        return []
    # Sizes first: a truncated file is found at once, without hashing gigabytes.
    problems = missing_or_truncated_files(folder, expected)
    return problems or changed_files(folder, expected, _hash_on_all_ranks(list(expected), folder, flush=False))


def _files_of(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != FILES)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _hash_on_all_ranks(names: list[str], folder: Path, flush: bool) -> dict[str, FileDigest]:
    """Hash files, each on one rank, and return the digests of all of them on every rank."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    mine = {name: FileDigest.of(folder / name, flush_to_disk=flush) for name in names[_rank() :: world]}
    if world == 1:
        return mine
    gathered: list[dict[str, FileDigest]] = [{}] * world
    torch.distributed.all_gather_object(gathered, mine)
    return {name: digest for part in gathered for name, digest in part.items()}


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _wait() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
