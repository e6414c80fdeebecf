"""The folders that a run writes to, and the check, before it starts, that they can be written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from mindspeed_llm.arguments.output_arguments import CheckpointArguments, LoggingArguments
from mindspeed_llm.devices.rendezvous import current_rank, is_first_rank_of_machine
from mindspeed_llm.errors import ConfigError


def run_dir_of(checkpoint: CheckpointArguments, logging: LoggingArguments) -> Path:
    """--run-dir, else run/ inside --save, else runs/TIME."""
    if logging.run_dir is not None:
        return Path(logging.run_dir)
    if checkpoint.save is not None:
        return Path(checkpoint.save) / "run"
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def leased_dirs(checkpoint: CheckpointArguments, logging: LoggingArguments) -> dict[str, Path]:
    """Flag → folder that one run at a time writes to: --save, and --run-dir outside of it.

    A run folder of neither has the time in its name.
    """
    save, run_dir = checkpoint.save, logging.run_dir
    folders = {"--save": Path(save)} if save is not None else {}
    if run_dir is not None and not (save and Path(run_dir).resolve().is_relative_to(Path(save).resolve())):
        folders["--run-dir"] = Path(run_dir)
    return folders


def output_dirs_of_rank(checkpoint: CheckpointArguments, logging: LoggingArguments) -> dict[str, Path]:
    """Flag → folder that this rank writes to: shards are written by every machine, the run folder by rank 0."""
    places = {}
    if checkpoint.save is not None and is_first_rank_of_machine():
        places["--save"] = Path(checkpoint.save)
    of_rank_zero = {"--run-dir": logging.run_dir, "--tensorboard-dir": logging.tensorboard_dir}
    for flag, folder in of_rank_zero.items() if current_rank() == 0 else ():
        if folder is not None:
            places[flag] = Path(folder)
    return places


def check_writable(places: Mapping[str, Path]) -> None:
    """Write and remove an empty file in each folder, or, where it is not there yet, in the one it will be made in.

    Nothing is made: a run that is refused for another reason leaves no folder.

    Args:
        places: flag → folder.

    Raises:
        ConfigError: those that cannot be written.
    """
    problems = []
    for flag, folder in places.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            problems.append(f"{flag} {folder}: {'is' if there == folder else f'{there} is'} a file, not a folder")
            continue
        try:
            with tempfile.NamedTemporaryFile(dir=there, prefix=".writable."):
                pass
        except OSError as error:
            problems.append(f"{flag} {folder}: cannot be written ({error.strerror}: {there}); choose another folder")
    if problems:
        raise ConfigError(problems)
