"""The folder that --save and --load name, in Megatron's layout."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoints.identity import same_run
from mindspeed_llm.checkpoints.record import RunRecord, flush_folder, write_text
from mindspeed_llm.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
# Endings of folders that a save, or the removal of an old checkpoint, was stopped in.
SAVING, REPLACED, REMOVING = ".saving", ".replaced", ".removing"


@dataclass(frozen=True)
class CheckpointFolder:
    """Numbered checkpoints and the tracker that names the newest."""

    path: Path

    def iteration_path(self, iteration: int) -> Path:
        """Folder of one checkpoint: iter_0000010 for 10."""
        return self.path / f"iter_{iteration:07d}"

    def latest(self) -> Path | None:
        """Folder of the checkpoint that the tracker names; None if there is no tracker.

        Raises:
            CheckpointError: this is a file, or the tracker is damaged or names a checkpoint that is not there.
        """
        tracker = self.path / TRACKER
        try:
            text = tracker.read_text(encoding="utf-8").strip()
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

    def publish(self, saving: Path, iteration: int) -> None:
        """Turn a folder that is written and sealed into checkpoint `iteration`, and make it the newest."""
        target = self.iteration_path(iteration)
        replaced = target.with_name(target.name + REPLACED)
        if target.exists():
            target.rename(replaced)
        saving.rename(target)
        flush_folder(self.path)
        write_text(self.path / TRACKER, f"{iteration}\n")
        shutil.rmtree(replaced, ignore_errors=True)

    def prune(self, keep: int, identity: dict[str, Any]) -> None:
        """Remove all but the newest `keep` checkpoints of the run with this identity; others' stay."""
        own = []
        for folder in self.whole():
            record = RunRecord.read(folder)
            if record is not None and same_run(record, identity):
                own.append(folder)
        for folder in own[keep:]:
            # Renamed first: a folder with the name of a checkpoint is never half of one.
            removing = folder.with_name(folder.name + REMOVING)
            folder.rename(removing)
            shutil.rmtree(removing, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove what a save or a removal that was stopped has left, but for a checkpoint that nothing replaced."""
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            if not re.fullmatch(r"iter_\d{7,}\.\w+", folder.name):
                continue
            whole = folder.with_suffix("")
            if folder.suffix == REPLACED and not whole.exists():
                folder.rename(whole)
            elif folder.suffix in (SAVING, REPLACED, REMOVING):
                shutil.rmtree(folder)


def iteration_of(folder: Path) -> int | None:
    """Number in an iter_ folder's name; None for 'release', and for one that is being written or removed."""
    match = re.fullmatch(r"iter_(\d+)(\.replaced)?", folder.name)
    return int(match.group(1)) if match else None
