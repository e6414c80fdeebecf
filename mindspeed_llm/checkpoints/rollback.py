"""Continuing below the newest checkpoint, because the tracker was set back or the newer ones are damaged.

    iter 3   iter 6   iter 9   iter 12      tracker names 12; somebody writes 3 into it
    iter 3   ─▶ 4, 5, …                     a new branch begins; 6, 9 and 12 are moved to set_aside_TIME/

Left in place, the later ones would be taken for the end of the new branch, or be overwritten by it one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoints.resume import StartPoint
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints
from mindspeed_llm.errors import CheckpointError


def set_aside_later_checkpoints(save: Path, start: StartPoint, identity: dict[str, Any]) -> str | None:
    """Move this run's checkpoints that are later than its start aside, and let the tracker name the start.

    One process does it, before the first step. Killed at any moment, the next start does the rest.

    Args:
        save: folder of --save.
        start: where the run starts.
        identity: of this run; what certainly belongs to another one stays.

    Returns:
        a line for the user; None if there was nothing to move.

    Raises:
        CheckpointError: the folder cannot be changed.
    """
    folder = RunCheckpoints(save)
    try:
        keep = {start.folder.resolve()} if start.folder is not None else set()
        if start.kind == "continue":
            folder.set_back(start.progress.iteration)
        elif (named := folder.latest()) is not None:
            keep.add(named.resolve())  # another run's weights, which this one has started from or passed over
        later = [one for one in folder.later(start.progress.iteration, identity) if one.resolve() not in keep]
        if not later:
            return None
        aside = folder.set_aside(later)
    except OSError as error:
        raise CheckpointError(f"--save {save}: its later checkpoints cannot be set aside ({error})") from error
    names = ", ".join(one.name for one in reversed(later))
    return (
        f"set aside: {names} {'are' if len(later) > 1 else 'is'} later than iteration {start.progress.iteration}, "
        f"where this run starts, and now in {aside}; nothing was deleted"
    )
