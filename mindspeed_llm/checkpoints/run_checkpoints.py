"""The folder of --save as a run sees it: which of its checkpoints are its own."""

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
    """A checkpoint directory, with what depends on whose the checkpoints are."""

    def later(self, iteration: int, identity: dict[str, Any]) -> list[Path]:
        """Checkpoints after an iteration, newest first, without those that certainly are another run's or program's."""
        return [folder for folder in self.after(iteration) if _is_own(folder, identity, in_doubt=True)]

    def prune(self, keep: int, identity: dict[str, Any]) -> None:
        """Remove all but the newest `keep` checkpoints of the run with this identity, counted from the one that the
        tracker names; later ones and other runs' stay, and so do those whose record is damaged.
        """
        self.remove_older(keep, lambda folder: _is_own(folder, identity, in_doubt=False))


def _is_own(folder: Path, identity: dict[str, Any], in_doubt: bool) -> bool:
    """Whether a checkpoint is of the run with this identity; `in_doubt` if its record is damaged."""
    if damage_of_file(folder, RECORD) is not None:
        return in_doubt
    try:
        record = RunMetadata.read(folder)
    except CheckpointError:
        return in_doubt
    return record is not None and is_same_run(record, identity)
