"""Select the checkpoints in a directory that belong to a run, by its identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoints.metadata import RunMetadata
from mindspeed_llm.checkpoints.run_identity import is_same_run
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.checkpoint_directory import RECORD, CheckpointDirectory
from mindspeed_llm.storage.checkpoint_file_list import damage_of_file


@dataclass(frozen=True)
class RunCheckpoints(CheckpointDirectory):
    """A checkpoint directory, with the operations that apply only to the checkpoints of one run."""

    def later(self, iteration: int, identity: dict[str, Any]) -> list[Path]:
        """Return the checkpoints of a run after an iteration.

        Args:
            iteration: number of an iteration.
            identity: identity of the run.

        Returns:
            Directories, newest first. Checkpoints with a damaged run.json are included; those of other runs and of
            other programs are not.
        """
        # Damaged metadata counts as the run's own here: a moved checkpoint is not lost, and one that stays could be
        # taken for the end of the new branch.
        return [folder for folder in self.after(iteration) if _is_own(folder, identity, in_doubt=True)]

    def prune(self, keep: int, identity: dict[str, Any]) -> None:
        """Remove old checkpoints of a run, except the newest `keep`.

        Checkpoints are counted from the one that the tracker names. Later checkpoints, those of other runs and those
        with a damaged run.json stay.

        Args:
            keep: number of checkpoints that stay.
            identity: identity of the run.
        """
        # Removal cannot be undone, so damaged metadata does not count as the run's own here.
        self.remove_older(keep, lambda folder: _is_own(folder, identity, in_doubt=False))


def _is_own(folder: Path, identity: dict[str, Any], in_doubt: bool) -> bool:
    """Return whether a checkpoint belongs to the run with this identity; `in_doubt` if its run.json is damaged."""
    if damage_of_file(folder, RECORD) is not None:
        return in_doubt
    try:
        metadata = RunMetadata.read(folder)
    except CheckpointError:
        return in_doubt
    return metadata is not None and is_same_run(metadata, identity)
