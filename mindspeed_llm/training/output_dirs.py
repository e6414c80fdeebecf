"""Determine the output directories of a run, and check before it starts that they are writable."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mindspeed_llm.arguments.output_arguments import CheckpointArguments, LoggingArguments
from mindspeed_llm.devices.rendezvous import current_rank, is_first_rank_of_machine
from mindspeed_llm.errors import ConfigError


def run_dir_of(checkpoint: CheckpointArguments, logging: LoggingArguments) -> Path:
    """Return the run directory: --run-dir, else run/ inside --save, else runs/TIME."""
    if logging.run_dir is not None:
        return Path(logging.run_dir)
    if checkpoint.save is not None:
        return Path(checkpoint.save) / "run"
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def leased_dirs(checkpoint: CheckpointArguments, logging: LoggingArguments) -> dict[str, Path]:
    """Return the directories that only one run at a time may write to.

    Returns:
        Flag → directory: --save, and --run-dir if it is not inside --save. The default run directory has the time in
        its name and needs no lease.
    """
    save, run_dir = checkpoint.save, logging.run_dir
    folders = {"--save": Path(save)} if save is not None else {}
    if run_dir is not None and not (save and Path(run_dir).resolve().is_relative_to(Path(save).resolve())):
        folders["--run-dir"] = Path(run_dir)
    return folders


def output_dirs_of_rank(checkpoint: CheckpointArguments, logging: LoggingArguments) -> dict[str, Path]:
    """Return the directories that this rank has to check: flag → directory.

    Every machine writes shards of checkpoints to --save; only rank 0 writes to the other directories.
    """
    dirs = {}
    if checkpoint.save is not None and is_first_rank_of_machine():
        dirs["--save"] = Path(checkpoint.save)
    of_rank_zero = {"--run-dir": logging.run_dir, "--tensorboard-dir": logging.tensorboard_dir}
    for flag, folder in of_rank_zero.items() if current_rank() == 0 else ():
        if folder is not None:
            dirs[flag] = Path(folder)
    return dirs


def check_writable(dirs: Mapping[str, Path]) -> None:
    """Check that the output directories are writable by creating and removing an empty file.

    For a directory that does not exist, the file is created in its closest existing parent. The directory itself is not
    created, so that a run that is refused for another reason leaves nothing behind.

    Args:
        dirs: flag → directory.

    Raises:
        ConfigError: directories that are not writable, or that are files.
    """
    problems = []
    for flag, folder in dirs.items():
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            problems.append(f"{flag} {folder}: {'is' if existing == folder else f'{existing} is'} a file, not a folder")
            continue
        try:
            with tempfile.NamedTemporaryFile(dir=existing, prefix=".writable."):
                pass
        except OSError as error:
            problems.append(f"{flag} {folder}: cannot be written ({error.strerror}: {existing}); choose another folder")
    if problems:
        raise ConfigError(problems)
