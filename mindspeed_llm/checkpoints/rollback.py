"""Move later checkpoints aside if a run resumes from a checkpoint that is not the newest.

This happens if somebody has set the tracker back, or if newer checkpoints are damaged:

    iter 3   iter 6   iter 9   iter 12      the tracker names 12; somebody writes 3 into it
    iter 3   ─▶ 4, 5, …                     a new branch begins; 6, 9 and 12 are moved to set_aside_TIME/

If the later checkpoints stayed, a resume could take them for the end of the new branch, and the new branch would
overwrite them one by one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoints.resume import StartPoint
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints
from mindspeed_llm.errors import CheckpointError


def set_aside_later_checkpoints(save: Path, start: StartPoint, identity: dict[str, Any]) -> str | None:
    """Move the checkpoints of this run that are later than its start point aside, and set the tracker to that point.

    One process does it, before the first step. If it is killed, the next start completes it.

    Args:
        save: directory of --save.
        start: start point of the run.
        identity: identity of this run. Checkpoints that certainly belong to another run stay.

    Returns:
        A line for the user; None if no checkpoint was moved.

    Raises:
        CheckpointError: The directory cannot be changed.
    """
    folder = RunCheckpoints(save)
    try:
        keep = {start.folder.resolve()} if start.folder is not None else set()
        if start.kind == "continue":
            # Before the renames: the tracker must never name a checkpoint that has been moved.
            folder.set_back(start.progress.iteration)
        elif (named := folder.latest()) is not None:
            # The checkpoint of another run, from which this run has started, or which it has passed over as damaged.
            # The tracker still names it, so it stays.
            keep.add(named.resolve())
        later = [path for path in folder.later(start.progress.iteration, identity) if path.resolve() not in keep]
        if not later:
            return None
        aside = folder.set_aside(later)
    except OSError as error:
        raise CheckpointError(f"--save {save}: its later checkpoints cannot be set aside ({error})") from error
    names = ", ".join(path.name for path in reversed(later))
    return (
        f"set aside: {names} {'are' if len(later) > 1 else 'is'} later than iteration {start.progress.iteration}, "
        f"where this run starts; moved to {aside}, nothing was deleted"
    )
