"""The folder that --save and --load name, in Megatron's layout."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mindspeed_llm.checkpoints.record import write_text
from mindspeed_llm.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"


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
            CheckpointError: the tracker is damaged or names a checkpoint that is not there.
        """
        tracker = self.path / TRACKER
        try:
            text = tracker.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
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

    def set_latest(self, iteration: int) -> None:
        """Make a checkpoint the newest."""
        write_text(self.path / TRACKER, f"{iteration}\n")


def iteration_of(folder: Path) -> int | None:
    """Number in an iter_ folder's name; None for 'release'."""
    match = re.fullmatch(r"iter_(\d+)", folder.name)
    return int(match.group(1)) if match else None
