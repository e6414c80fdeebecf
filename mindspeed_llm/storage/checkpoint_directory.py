"""The checkpoint directory of --save and --load in Megatron's layout: names, tracker, leftovers of a killed save.

    SAVE/latest_checkpointed_iteration.txt      tracker: the number of the newest complete checkpoint
    SAVE/latest_checkpointed_iteration.txt.tmp  the next tracker, while a checkpoint is published
    SAVE/iter_0000010/                          a complete checkpoint
        run.json                                metadata of the run that saved it; only pretrain_gpt.py writes it
        adapter.json                            only if it contains an adapter and not a complete model
        files.json                              size and SHA-256 of every other file, written last
        hugging_face/                           config.json, tokenizer and generation settings of the model
    SAVE/iter_0000020.saving/                   a checkpoint that is being written
    SAVE/iter_0000020.replaced/                 an older checkpoint with the number of the one being published
    SAVE/iter_0000005.removing/                 a checkpoint that --keep-last is removing
    SAVE/set_aside_20260101-120000/             later checkpoints of a run that was set back, with a tracker
    SAVE/release/                               weights without an iteration, as other programs write them

pretrain_gpt.py and convert_ckpt.py write the tracker when they save. The start of a run, an export, a conversion and
arguments/loaded_shape.py, which reads the shape of a model, read it.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.atomic_write import flush, flush_folder, rename
from mindspeed_llm.storage.safe_open import read_file_text

TRACKER = "latest_checkpointed_iteration.txt"
RECORD = "run.json"
FILES = "files.json"
ADAPTER = "adapter.json"
CARRIED = "hugging_face"
RELEASE = "release"
# Endings of directories in use by a save or a removal. They remain only if that was interrupted.
SAVING, REPLACED, REMOVING = ".saving", ".replaced", ".removing"
# Prefix of directories for checkpoints that are no longer part of the run. This program never removes them.
SET_ASIDE = "set_aside"


def parse_iteration(folder: Path) -> int | None:
    """Return the number in the name of an iter_ folder.

    Returns:
        The iteration, also for `iter_N.replaced`, which is a complete checkpoint. None for 'release', and for a
        checkpoint that is being written or removed.
    """
    match = re.fullmatch(r"iter_(\d+)(\.replaced)?", folder.name)
    return int(match.group(1)) if match else None


class LatestIterationFile:
    """The tracker file, which names the newest checkpoint. It is replaced in two steps, `prepare` and `replace`.

    A reader of `path` sees the old or the new number at any time. Between the two steps a save renames its checkpoint
    to its final name.

    Args:
        folder: the checkpoint directory.

    Attributes:
        path: the tracker.
        beside: the temporary file with the next number.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRACKER
        self.beside = folder / f"{TRACKER}.tmp"

    def prepare(self, iteration: int) -> None:
        """Write the next number to the temporary file, and flush it to the disk."""
        with self.beside.open("w", encoding="utf-8") as file:
            file.write(f"{iteration}\n")
            flush(file)

    def replace(self) -> None:
        """Replace the tracker by the temporary file, and flush the directory to the disk."""
        rename(self.beside, self.path)
        flush_folder(self.path.parent)

    def write(self, iteration: int) -> None:
        """Set the number at once, as `prepare` and `replace` do."""
        self.prepare(iteration)
        self.replace()

    def number(self) -> int | None:
        """Return the number in the tracker; None if it cannot be read or does not contain a number."""
        try:
            return _number(read_file_text(self.path).strip())
        except (OSError, UnicodeDecodeError):
            return None

    def prepared_number(self) -> int | None:
        """Return the number that an interrupted save has prepared.

        Returns:
            The number in the temporary file. None if there is no such file, or if the tracker is newer: then somebody
            has edited the tracker since, and that decision counts.
        """
        try:
            text = read_file_text(self.beside).strip()
            prepared = self.beside.stat().st_mtime_ns
            if self.path.exists() and self.path.stat().st_mtime_ns > prepared:
                return None
        except (OSError, UnicodeDecodeError):
            return None
        return _number(text)


def _number(text: str) -> int | None:
    # A damaged file may have any number of digits, and int() raises an error for more than 4,300.
    return int(text) if re.fullmatch(r"\d{1,12}", text) else None


@dataclass(frozen=True)
class CheckpointDirectory:
    """A directory of numbered checkpoints, with a tracker that names the newest.

    Attributes:
        path: the directory. It need not exist.
    """

    path: Path

    @property
    def tracker(self) -> LatestIterationFile:
        """Tracker file of this directory."""
        return LatestIterationFile(self.path)

    def iteration_path(self, iteration: int) -> Path:
        """Return the directory of a checkpoint: iter_0000010 for 10."""
        return self.path / f"iter_{iteration:07d}"

    def saving_path(self, iteration: int) -> Path:
        """Return the directory in which a checkpoint is written until it is complete."""
        target = self.iteration_path(iteration)
        return target.with_name(target.name + SAVING)

    def latest(self) -> Path | None:
        """Return the checkpoint that the tracker names, or that an interrupted save was about to write into it.

        Returns:
            The directory of the checkpoint; None if there is no tracker.

        Raises:
            CheckpointError: `path` is a file, or the tracker is damaged or names a checkpoint that does not exist.
        """
        prepared = self.tracker.prepared_number()
        if prepared is not None and self.iteration_path(prepared).is_dir():
            # A save was killed after the checkpoint got its final name, and before the tracker was replaced.
            return self.iteration_path(prepared)
        path = self.tracker.path
        try:
            text = read_file_text(path).strip()
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise CheckpointError(
                f"{self.path}: a file, not a folder; give the directory that contains iter_ folders"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        number = _number(text)
        if text != RELEASE and number is None:
            raise CheckpointError(
                f"{path}: contains {text[:40]!a}, not the number of an iteration; write the number of an existing "
                "iter_ folder into it"
            )
        folder = self.path / RELEASE if number is None else self.iteration_path(number)
        if not folder.is_dir():
            raise CheckpointError(
                f"{path}: names {folder.name}, which does not exist; write the number of an existing iter_ folder "
                "into it"
            )
        return folder

    def newest(self) -> Path | None:
        """Return the checkpoint to resume from.

        This is the checkpoint that the tracker names. If that checkpoint is gone, it is the newest checkpoint before
        it. If the tracker cannot be read, it is the newest of all checkpoints.

        Returns:
            The directory of the checkpoint; None if there are no checkpoints.

        Raises:
            CheckpointError: There are checkpoints, but without a tracker it is unknown which one to resume from; or
                the tracker does not name a checkpoint, and there is no other one to use instead.
        """
        try:
            named = self.latest()
        except CheckpointError:
            # Checkpoints after the tracker's number are no candidates: they may belong to another branch of the run,
            # from before somebody set the tracker back.
            left = self.up_to(self.tracker.number())
            if not left:
                raise
            return left[0]
        if named is None and (complete := self.complete_checkpoints()):
            names = f"{complete[0].name}" if len(complete) == 1 else f"{complete[-1].name} to {complete[0].name}"
            raise CheckpointError(
                f"{self.tracker.path}: missing, but there are checkpoints ({names}). To resume, write the number of a "
                f"checkpoint into it ({parse_iteration(complete[0])} for the newest), or give another directory"
            )
        return named

    def complete_checkpoints(self) -> list[Path]:
        """Return the directories of all complete checkpoints, newest first, whatever the tracker names.

        They include a checkpoint that an interrupted save was about to replace (iter_N.replaced without an iter_N).
        """
        complete: dict[int, Path] = {}
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            iteration = parse_iteration(folder)
            if iteration is None or not folder.is_dir():
                continue
            if folder.name == self.iteration_path(iteration).name:
                complete[iteration] = folder
            elif folder.name.endswith(REPLACED):
                complete.setdefault(iteration, folder)
        return [complete[iteration] for iteration in sorted(complete, reverse=True)]

    def up_to(self, iteration: int | None) -> list[Path]:
        """Return the complete checkpoints up to and including an iteration, newest first; None for all."""
        return [
            checkpoint
            for checkpoint in self.complete_checkpoints()
            if iteration is None or (parse_iteration(checkpoint) or 0) <= iteration
        ]

    def after(self, iteration: int) -> list[Path]:
        """Return the complete checkpoints after an iteration, newest first."""
        return [
            checkpoint for checkpoint in self.complete_checkpoints() if (parse_iteration(checkpoint) or 0) > iteration
        ]

    def publish(self, saving: Path, iteration: int) -> None:
        """Rename a written and sealed directory to its final name, and let the tracker name it.

        An existing checkpoint with the same number is set aside. It belongs to another run, because this run's own
        later checkpoints were set aside at its start.

        Args:
            saving: from `saving_path`, complete and flushed to the disk.
            iteration: number of the checkpoint.
        """
        target = self.iteration_path(iteration)
        replaced = target.with_name(target.name + REPLACED)
        if target.exists():
            # A rename cannot replace a directory that has files. Until the next rename the older checkpoint counts
            # under this name, see `complete_checkpoints`.
            rename(target, replaced)
        tracker = self.tracker
        # Before the rename: if the save is killed after it, `latest` finds the checkpoint through the prepared number.
        # A prepared number whose checkpoint does not exist yet is ignored.
        tracker.prepare(iteration)
        rename(saving, target)
        # The name of the checkpoint must be on the disk before a tracker that refers to it.
        flush_folder(self.path)
        tracker.replace()
        if replaced.exists():
            self.set_aside([replaced])

    def set_back(self, iteration: int) -> None:
        """Let the tracker name the checkpoint that a run starts from, if it does not do so already."""
        tracker = self.tracker
        if tracker.number() != iteration:
            tracker.write(iteration)
        # The number that an interrupted save has prepared would otherwise take precedence at the next start.
        tracker.beside.unlink(missing_ok=True)

    def set_aside(self, checkpoints: Sequence[Path]) -> Path:
        """Move checkpoints into a new directory, set_aside_TIME.

        The new directory has a tracker that names the first of them, so that --load can start from it.

        Args:
            checkpoints: at least one checkpoint, newest first.

        Returns:
            The new directory.
        """
        name = f"{SET_ASIDE}_{time.strftime('%Y%m%d-%H%M%S')}"
        number, aside = 1, self.path / name
        while aside.exists():
            number += 1
            aside = self.path / f"{name}-{number}"
        aside.mkdir()
        # The tracker first: if the process is killed between two of the renames, what was moved can still be loaded.
        LatestIterationFile(aside).write(parse_iteration(checkpoints[0]) or 0)
        for checkpoint in checkpoints:
            rename(checkpoint, aside / checkpoint.name.removesuffix(REPLACED))
        flush_folder(self.path)
        return aside

    def remove_older(self, keep: int, is_own: Callable[[Path], bool]) -> None:
        """Remove old checkpoints, except the newest `keep`.

        Checkpoints are counted from the one that the tracker names. Later checkpoints stay.

        Args:
            keep: number of checkpoints that stay.
            is_own: returns whether a checkpoint may be removed. Checkpoints for which it is false are not counted.
        """
        # Not by the highest numbers: after somebody has set the tracker back, that would remove what was just saved.
        named = self.tracker.number()
        candidates = self.up_to(named) if named is not None else []
        for folder in [checkpoint for checkpoint in candidates if is_own(checkpoint)][keep:]:
            self.remove(folder)

    def remove(self, folder: Path) -> None:
        """Remove a checkpoint.

        Args:
            folder: its directory.
        """
        # Renamed first: a directory with the name of a checkpoint is always complete. What cannot be removed now,
        # `clear_leftovers` removes at the next save.
        removing = folder.with_name(folder.name + REMOVING)
        rename(folder, removing)
        shutil.rmtree(removing, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove the leftovers of an interrupted save or removal.

        A checkpoint that was about to be replaced, and was not, gets its name back. If it was replaced, it is set
        aside.
        """
        for folder in list(self.path.iterdir()) if self.path.is_dir() else ():
            if not re.fullmatch(r"iter_\d{7,}\.\w+", folder.name):
                continue
            target = folder.with_suffix("")
            if folder.suffix == REPLACED and not target.exists():
                rename(folder, target)
            elif folder.suffix == REPLACED:
                self.set_aside([folder])
            elif folder.suffix in (SAVING, REMOVING):
                shutil.rmtree(folder)
