"""Select the checkpoints in a directory that belong to a run, by its identity."""

from __future__ import annotations

from collections.abc import Iterator
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

    def prune(self, keep: int, identity: dict[str, Any], keep_best: bool = False) -> None:
        """Remove old checkpoints of a run, except the newest `keep`.

        Checkpoints are counted from the one that the tracker names. Later checkpoints, those of other runs and those
        with a damaged run.json stay.

        Args:
            keep: number of checkpoints that stay.
            identity: identity of the run.
            keep_best: whether the checkpoint with the lowest held-out loss stays as well; it is not counted.
        """
        best = self.best(identity) if keep_best else None
        # Removal cannot be undone, so damaged metadata does not count as the run's own here.
        self.remove_older(keep, lambda folder: folder != best and _is_own(folder, identity, in_doubt=False))

    def best(self, identity: dict[str, Any]) -> Path | None:
        """Return the checkpoint of a run with the lowest held-out loss, up to the one that the tracker names.

        Args:
            identity: identity of the run.

        Returns:
            The directory; None if no checkpoint was saved at an evaluation with the lowest loss.
        """
        # A checkpoint that was the best when it was saved has a higher loss than a later one of this kind.
        return next((folder for folder, metadata in self._own(identity) if _was_best(metadata)), None)

    def remove_superseded(self, identity: dict[str, Any]) -> None:
        """Remove the checkpoints that were saved only because they were the best, except the best one.

        Args:
            identity: identity of the run.
        """
        best = self.best(identity)
        for folder, metadata in self._own(identity):
            if metadata.only_best and folder != best:
                self.remove(folder)

    def _own(self, identity: dict[str, Any]) -> Iterator[tuple[Path, RunMetadata]]:
        """Yield the checkpoints of a run up to the one that the tracker names, newest first, with their metadata."""
        named = self.tracker.number()
        for folder in self.up_to(named) if named is not None else ():
            metadata = _metadata_of(folder)
            if metadata is not None and is_same_run(metadata, identity):
                yield folder, metadata


def best_checkpoint(save: Path) -> Path | None:
    """Return the checkpoint with the lowest held-out loss of the run whose checkpoint is the newest.

    Args:
        save: directory of --save.

    Returns:
        The directory; None if no checkpoint was saved at an evaluation with the lowest loss.
    """
    folder = RunCheckpoints(save)
    newest = folder.newest()
    metadata = _metadata_of(newest) if newest is not None else None
    return folder.best(metadata.identity) if metadata is not None else None


def _was_best(metadata: RunMetadata) -> bool:
    return metadata.progress.best_iteration == metadata.progress.iteration


def _metadata_of(folder: Path) -> RunMetadata | None:
    """Return the metadata of a checkpoint; None if it is damaged or absent."""
    if damage_of_file(folder, RECORD) is not None:
        return None
    try:
        return RunMetadata.read(folder)
    except CheckpointError:
        return None


def _is_own(folder: Path, identity: dict[str, Any], in_doubt: bool) -> bool:
    """Return whether a checkpoint belongs to the run with this identity; `in_doubt` if its run.json is damaged."""
    if damage_of_file(folder, RECORD) is not None:
        return in_doubt
    try:
        metadata = RunMetadata.read(folder)
    except CheckpointError:
        return in_doubt
    return metadata is not None and is_same_run(metadata, identity)
