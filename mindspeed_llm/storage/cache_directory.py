"""The cache directory of this package, for results that hold on one machine only."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def cache_directory_of_this_machine(name: str) -> Path | None:
    """Return the cache directory `name` of this user on this machine, and create it if it is missing.

    It is `~/.cache/mindspeed_llm/NAME/HOST`; XDG_CACHE_HOME is respected. There is one directory per host, because
    machines may share a home directory.

    Returns:
        The directory; None if it cannot be created.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # noqa: PTH117 - "" is not a path
        folder = base / "mindspeed_llm" / name / (socket.gethostname() or "localhost").replace("/", "_")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return None
    return folder
