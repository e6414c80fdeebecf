"""The folder that --save and --load name, in Megatron's layout."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoints.identity import same_run
from mindspeed_llm.checkpoints.integrity import damage_of_file
from mindspeed_llm.checkpoints.record import FILE_NAME as RECORD_FILE
from mindspeed_llm.checkpoints.record import RunRecord
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.atomic import TextFile, flush_folder, write_text
from mindspeed_llm.storage.opening import text_of

TRACKER = "latest_checkpointed_iteration.txt"
# Endings of folders that a save, or the removal of an old checkpoint, was stopped in.
SAVING, REPLACED, REMOVING = ".saving", ".replaced", ".removing"
# Folders inside --save for checkpoints that are no longer part of the run; nothing in them is ever removed.
SET_ASIDE = "set_aside"


@dataclass(frozen=True)
class CheckpointFolder:
    """Numbered checkpoints and the tracker that names the newest."""

    path: Path

    def iteration_path(self, iteration: int) -> Path:
        """Folder of one checkpoint: iter_0000010 for 10."""
        return self.path / f"iter_{iteration:07d}"

    def latest(self) -> Path | None:
        """Folder of the checkpoint that the tracker names, or was about to; None if there is no tracker.

        Raises:
            CheckpointError: this is a file, or the tracker is damaged or names a checkpoint that is not there.
        """
        if (published := self._published_before_tracker()) is not None:
            return published
        tracker = self.path / TRACKER
        try:
            text = text_of(tracker).strip()
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise CheckpointError(
                f"{self.path}: a file, not a folder; give the one that holds iter_ folders"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{tracker}: cannot be read ({error})") from error
        if text == "release":
            folder = self.path / "release"
        elif re.fullmatch(r"\d{1,12}", text):
            folder = self.iteration_path(int(text))
        else:
            raise CheckpointError(
                f"{tracker}: holds {text[:40]!r}, not the number of an iteration; write the number of one of its "
                "iter_ folders into it"
            )
        if not folder.is_dir():
            raise CheckpointError(
                f"{tracker}: names {folder.name}, which is not there; write the number of an iter_ folder that is"
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
            number = self._tracked()
            left = [one for one in self.whole() if number is None or (iteration_of(one) or 0) <= number]
            if not left:
                raise
            return left[0]
        if named is None and (whole := self.whole()):
            names = f"{whole[0].name}" if len(whole) == 1 else f"{whole[-1].name} to {whole[0].name}"
            raise CheckpointError(
                f"{self.path / TRACKER}: missing, but there are checkpoints ({names}). Write the number of the one to "
                f"continue from into it ({iteration_of(whole[0])} for the newest), or give another folder"
            )
        return named

    def whole(self) -> list[Path]:
        """Folders of the checkpoints that were made whole, newest first, whatever the tracker says.

        One that a save was about to replace when it was stopped (iter_N.replaced, without an iter_N) is among them.
        """
        found: dict[int, Path] = {}
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            iteration = iteration_of(folder)
            if iteration is None or not folder.is_dir():
                continue
            if folder.name == self.iteration_path(iteration).name:
                found[iteration] = folder
            elif folder.name.endswith(REPLACED):
                found.setdefault(iteration, folder)
        return [found[iteration] for iteration in sorted(found, reverse=True)]

    def later(self, iteration: int, identity: dict[str, Any]) -> list[Path]:
        """Checkpoints after an iteration, newest first, without those that certainly are another run's or program's."""
        return [
            folder
            for folder in self.whole()
            if (iteration_of(folder) or 0) > iteration and _is_own(folder, identity, in_doubt=True)
        ]

    def publish(self, saving: Path, iteration: int) -> None:
        """Turn a folder that is written and sealed into checkpoint `iteration`, and make it the newest.

        A checkpoint that has the number already is set aside: it is another run's, since this run's own later ones
        were set aside at its start.
        """
        target = self.iteration_path(iteration)
        replaced = target.with_name(target.name + REPLACED)
        if target.exists():
            target.rename(replaced)
        tracker = TextFile(self.path / TRACKER)
        tracker.prepare(f"{iteration}\n")
        saving.rename(target)
        flush_folder(self.path)
        tracker.replace()
        if replaced.exists():
            self.set_aside([replaced])

    def set_back(self, iteration: int) -> None:
        """Let the tracker name the checkpoint that a run starts from, if it does not yet."""
        if self._tracked() != iteration:
            write_text(self.path / TRACKER, f"{iteration}\n")
        TextFile(self.path / TRACKER).beside.unlink(missing_ok=True)

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
        write_text(aside / TRACKER, f"{iteration_of(checkpoints[0])}\n")
        for checkpoint in checkpoints:
            checkpoint.rename(aside / checkpoint.name.removesuffix(REPLACED))
        flush_folder(self.path)
        return aside

    def prune(self, keep: int, identity: dict[str, Any]) -> None:
        """Remove all but the newest `keep` checkpoints of the run with this identity, counted from the one that the
        tracker names; later ones and other runs' stay, and so do those whose record is damaged."""
        named = self._tracked()
        line = [one for one in self.whole() if named is not None and (iteration_of(one) or 0) <= named]
        for folder in [one for one in line if _is_own(one, identity, in_doubt=False)][keep:]:
            # Renamed first: a folder with the name of a checkpoint is never half of one.
            removing = folder.with_name(folder.name + REMOVING)
            folder.rename(removing)
            shutil.rmtree(removing, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove what a save or a removal that was stopped has left, but for a checkpoint that nothing replaced."""
        for folder in list(self.path.iterdir()) if self.path.is_dir() else ():
            if not re.fullmatch(r"iter_\d{7,}\.\w+", folder.name):
                continue
            whole = folder.with_suffix("")
            if folder.suffix == REPLACED and not whole.exists():
                folder.rename(whole)
            elif folder.suffix == REPLACED:
                self.set_aside([folder])
            elif folder.suffix in (SAVING, REMOVING):
                shutil.rmtree(folder)

    def _tracked(self) -> int | None:
        """The number in the tracker; None if it holds none."""
        try:
            text = text_of(self.path / TRACKER).strip()
        except (OSError, UnicodeDecodeError):
            return None
        return int(text) if re.fullmatch(r"\d{1,12}", text) else None

    def _published_before_tracker(self) -> Path | None:
        """The checkpoint of a save that was stopped when all but the tracker was in place; None if there is none.

        The new tracker was ready then, but for its name. If somebody has written the tracker since, that counts.
        """
        tracker = TextFile(self.path / TRACKER)
        try:
            text = text_of(tracker.beside).strip()
            written = tracker.beside.stat().st_mtime_ns
            if tracker.path.exists() and tracker.path.stat().st_mtime_ns > written:
                return None
        except (OSError, UnicodeDecodeError):
            return None
        folder = self.iteration_path(int(text)) if re.fullmatch(r"\d{1,12}", text) else None
        return folder if folder is not None and folder.is_dir() else None


def _is_own(folder: Path, identity: dict[str, Any], in_doubt: bool) -> bool:
    """Whether a checkpoint is of the run with this identity; `in_doubt` if its record is damaged."""
    if damage_of_file(folder, RECORD_FILE) is not None:
        return in_doubt
    try:
        record = RunRecord.read(folder)
    except CheckpointError:
        return in_doubt
    return record is not None and same_run(record, identity)


def iteration_of(folder: Path) -> int | None:
    """Number in an iter_ folder's name; None for 'release', and for one that is being written or removed."""
    match = re.fullmatch(r"iter_(\d+)(\.replaced)?", folder.name)
    return int(match.group(1)) if match else None
