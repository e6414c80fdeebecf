"""Whether a run can write where it is told to: found out before it starts, and not at its first checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mindspeed_llm.errors import ConfigError


def check_places(places: Mapping[str, Path]) -> None:
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
