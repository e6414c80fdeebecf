"""The directory that --save and --load name, in Megatron's layout: its names, its tracker, and what a stop may leave.

    SAVE/latest_checkpointed_iteration.txt      tracker: the number of the newest complete checkpoint
    SAVE/latest_checkpointed_iteration.txt.tmp  the next tracker, while a checkpoint is published
    SAVE/iter_0000010/                          a complete checkpoint
        run.json                                the run that saved it; only pretrain_gpt.py writes it
        files.json                              size and SHA-256 of every other file, written last
        hugging_face/                           config.json, tokenizer and generation settings of the model
    SAVE/iter_0000020.saving/                   a checkpoint that is being written
    SAVE/iter_0000020.replaced/                 one of the same number that the new one takes the place of
    SAVE/iter_0000005.removing/                 one that --keep-last removes
    SAVE/set_aside_20260101-120000/             later checkpoints of a run that was set back, with a tracker
    SAVE/release/                               what other programs call weights without a number

A save of pretrain_gpt.py and convert_ckpt.py write the tracker; a start, an export, a conversion and the reading of a
model's shape (arguments/loaded_shape.py) read it.
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
CARRIED = "hugging_face"
RELEASE = "release"
# Endings of folders that a save, or the removal of an old checkpoint, was stopped in.
SAVING, REPLACED, REMOVING = ".saving", ".replaced", ".removing"
# Folders inside --save for checkpoints that are no longer part of the run; nothing in them is ever removed.
SET_ASIDE = "set_aside"


def parse_iteration(folder: Path) -> int | None:
    """Number in an iter_ folder's name; None for 'release', and for one that is being written or removed."""
    match = re.fullmatch(r"iter_(\d+)(\.replaced)?", folder.name)
    return int(match.group(1)) if match else None


class LatestIterationFile:
    """The file that names the newest checkpoint, replaced in two steps: a reader sees the old number or the new one.

    Attributes:
        path: of the file.
        beside: where its new text is made ready.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRACKER
        self.beside = folder / f"{TRACKER}.tmp"

    def prepare(self, iteration: int) -> None:
        """Write the new number beside, and flush it to the disk."""
        with self.beside.open("w", encoding="utf-8") as file:
            file.write(f"{iteration}\n")
            flush(file)

    def replace(self) -> None:
        """Let the new number take the old one's place, and flush that to the disk."""
        rename(self.beside, self.path)
        flush_folder(self.path.parent)

    def write(self, iteration: int) -> None:
        """Both steps."""
        self.prepare(iteration)
        self.replace()

    def number(self) -> int | None:
        """The number in it; None if it cannot be read or holds none."""
        try:
            return _number(read_file_text(self.path).strip())
        except (OSError, UnicodeDecodeError):
            return None

    def prepared_number(self) -> int | None:
        """The number that a save was about to write when it was stopped; None if there is none.

        If somebody has written the tracker since, that counts.
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
    return int(text) if re.fullmatch(r"\d{1,12}", text) else None


@dataclass(frozen=True)
class CheckpointDirectory:
    """Numbered checkpoints and the tracker that names the newest."""

    path: Path

    @property
    def tracker(self) -> LatestIterationFile:
        return LatestIterationFile(self.path)

    def iteration_path(self, iteration: int) -> Path:
        """Folder of one checkpoint: iter_0000010 for 10."""
        return self.path / f"iter_{iteration:07d}"

    def saving_path(self, iteration: int) -> Path:
        """Folder in which a checkpoint is written until it is complete."""
        target = self.iteration_path(iteration)
        return target.with_name(target.name + SAVING)

    def latest(self) -> Path | None:
        """Folder of the checkpoint that the tracker names, or was about to; None if there is no tracker.

        Raises:
            CheckpointError: this is a file, or the tracker is damaged or names a checkpoint that is not there.
        """
        prepared = self.tracker.prepared_number()
        if prepared is not None and self.iteration_path(prepared).is_dir():
            return self.iteration_path(prepared)  # a save was stopped when all but the tracker was in place
        path = self.tracker.path
        try:
            text = read_file_text(path).strip()
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise CheckpointError(
                f"{self.path}: a file, not a folder; give the one that holds iter_ folders"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from error
        number = _number(text)
        if text != RELEASE and number is None:
            raise CheckpointError(
                f"{path}: holds {text[:40]!a}, not the number of an iteration; write the number of one of its "
                "iter_ folders into it"
            )
        folder = self.path / RELEASE if number is None else self.iteration_path(number)
        if not folder.is_dir():
            raise CheckpointError(
                f"{path}: names {folder.name}, which is not there; write the number of an iter_ folder that is"
            )
        return folder

    def newest(self) -> Path | None:
        """The checkpoint to continue from; None if there is none.

        It is what the tracker names. Where that is gone, it is the newest of those before it: later ones may be of
        another branch, left over from before somebody set the tracker back. Where the tracker cannot be read, it is
        the newest of all.

        Raises:
            CheckpointError: there are checkpoints, but nothing tells which of them this would be.
        """
        try:
            named = self.latest()
        except CheckpointError:
            left = self.up_to(self.tracker.number())
            if not left:
                raise
            return left[0]
        if named is None and (whole := self.complete_checkpoints()):
            names = f"{whole[0].name}" if len(whole) == 1 else f"{whole[-1].name} to {whole[0].name}"
            raise CheckpointError(
                f"{self.tracker.path}: missing, but there are checkpoints ({names}). Write the number of the one to "
                f"continue from into it ({parse_iteration(whole[0])} for the newest), or give another folder"
            )
        return named

    def complete_checkpoints(self) -> list[Path]:
        """Folders of the checkpoints that were made whole, newest first, whatever the tracker says.

        One that a save was about to replace when it was stopped (iter_N.replaced, without an iter_N) is among them.
        """
        found: dict[int, Path] = {}
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            iteration = parse_iteration(folder)
            if iteration is None or not folder.is_dir():
                continue
            if folder.name == self.iteration_path(iteration).name:
                found[iteration] = folder
            elif folder.name.endswith(REPLACED):
                found.setdefault(iteration, folder)
        return [found[iteration] for iteration in sorted(found, reverse=True)]

    def up_to(self, iteration: int | None) -> list[Path]:
        """Those of `whole` up to an iteration; None for all."""
        return [
            one for one in self.complete_checkpoints() if iteration is None or (parse_iteration(one) or 0) <= iteration
        ]

    def after(self, iteration: int) -> list[Path]:
        """Those of `whole` after an iteration."""
        return [one for one in self.complete_checkpoints() if (parse_iteration(one) or 0) > iteration]

    def publish(self, saving: Path, iteration: int) -> None:
        """Turn a folder that is written and sealed into checkpoint `iteration`, and make it the newest.

        A checkpoint that has the number already is set aside: it is another run's, since this run's own later ones
        were set aside at its start.
        """
        target = self.iteration_path(iteration)
        replaced = target.with_name(target.name + REPLACED)
        if target.exists():
            rename(target, replaced)
        tracker = self.tracker
        tracker.prepare(iteration)
        rename(saving, target)
        flush_folder(self.path)
        tracker.replace()
        if replaced.exists():
            self.set_aside([replaced])

    def set_back(self, iteration: int) -> None:
        """Let the tracker name the checkpoint that a run starts from, if it does not yet."""
        tracker = self.tracker
        if tracker.number() != iteration:
            tracker.write(iteration)
        tracker.beside.unlink(missing_ok=True)

    def set_aside(self, checkpoints: Sequence[Path]) -> Path:
        """Move checkpoints into a new folder, set_aside_TIME, in which --load finds the first of them.

        Args:
            checkpoints: at least one, newest first.

        Returns:
            the new folder.
        """
        name = f"{SET_ASIDE}_{time.strftime('%Y%m%d-%H%M%S')}"
        number, aside = 1, self.path / name
        while aside.exists():
            number += 1
            aside = self.path / f"{name}-{number}"
        aside.mkdir()
        LatestIterationFile(aside).write(parse_iteration(checkpoints[0]) or 0)
        for checkpoint in checkpoints:
            rename(checkpoint, aside / checkpoint.name.removesuffix(REPLACED))
        flush_folder(self.path)
        return aside

    def remove_older(self, keep: int, is_own: Callable[[Path], bool]) -> None:
        """Remove all but the newest `keep` of the checkpoints for which `is_own` is true, counted from the one that
        the tracker names; later ones stay."""
        named = self.tracker.number()
        line = self.up_to(named) if named is not None else []
        for folder in [one for one in line if is_own(one)][keep:]:
            # Renamed first: a folder with the name of a checkpoint is never half of one.
            removing = folder.with_name(folder.name + REMOVING)
            rename(folder, removing)
            shutil.rmtree(removing, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove what a save or a removal that was stopped has left, but for a checkpoint that nothing replaced."""
        for folder in list(self.path.iterdir()) if self.path.is_dir() else ():
            if not re.fullmatch(r"iter_\d{7,}\.\w+", folder.name):
                continue
            whole = folder.with_suffix("")
            if folder.suffix == REPLACED and not whole.exists():
                rename(folder, whole)
            elif folder.suffix == REPLACED:
                self.set_aside([folder])
            elif folder.suffix in (SAVING, REMOVING):
                shutil.rmtree(folder)
