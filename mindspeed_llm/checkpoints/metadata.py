"""run.json: what a checkpoint says of itself, as plain JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_llm.checkpoints.batch_size_history import BatchSizeChange, batch_size_problem
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.atomic_write import write_atomically
from mindspeed_llm.storage.checkpoint_directory import RECORD
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_text

FORMAT = "mindspeed_llm.checkpoint"
VERSION = 1


@dataclass
class TrainingProgress:
    """How far a run is.

    Attributes:
        iteration: steps done.
        consumed_samples: packs (or unpacked samples) trained on, over all data-parallel ranks; the position in the
            order of the data.
        skipped_iterations, skipped_samples: those of the above that updated nothing (an overflow in fp16, no trained
            token, --skip-bad-steps). The learning-rate schedule does not count them.
    """

    iteration: int = 0
    consumed_samples: int = 0
    skipped_iterations: int = 0
    skipped_samples: int = 0

    def problem(self) -> str | None:
        """What is wrong with the skipped ones; None if nothing is."""
        fits = 0 <= self.skipped_iterations <= self.iteration and 0 <= self.skipped_samples <= self.consumed_samples
        return None if fits else "progress skips more than it has, or less than nothing"


@dataclass
class RunMetadata:
    """What is needed to go on, besides the tensors.

    Attributes:
        progress: where the run stood.
        identity: what a resume compares with the command (data, model, seed, start); see run_identity.py.
        layout: world, tensor and pipeline size, device, and whether the optimizer is distributed.
        scheduler: state of the learning-rate schedule.
        batch_sizes: the global batch sizes of the run; the first is the unit of its order. Empty in a record that an
            earlier version wrote.
        has_optimizer: whether the optimizer's state is in the checkpoint.
        has_rng: whether the random states are.
        arguments: all arguments of the run, for people.
        versions: of torch, megatron-core and this package, for people.
        identity_version: what `identity` holds; see `identity.VERSION`.
    """

    progress: TrainingProgress
    identity: dict[str, Any]
    layout: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    batch_sizes: list[BatchSizeChange] = field(default_factory=list)
    has_optimizer: bool = True
    has_rng: bool = True
    arguments: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    identity_version: int = 1

    def write(self, folder: Path) -> None:
        """Write run.json into a checkpoint's folder, whole or not at all."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_atomically(folder / RECORD, (json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> RunMetadata | None:
        """The record of a checkpoint; None if it has none (it was written by another program).

        Raises:
            CheckpointError: the file is damaged or was written by a newer version.
        """
        path = folder / RECORD
        try:
            raw = json.loads(read_file_text(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not a record of this program; use another checkpoint")
        if raw.get("version") != VERSION:
            raise CheckpointError(f"{path}: written by another version of this program; update it")
        try:
            record: RunMetadata = decode_dataclass(raw, cls, "")
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from error
        if min(record.progress.iteration, record.progress.consumed_samples) < 0:
            raise CheckpointError(f"{path}: damaged (progress is negative); use another checkpoint")
        problem = record.progress.problem() or batch_size_problem(
            record.batch_sizes, record.progress.iteration, record.progress.consumed_samples
        )
        if problem is not None:
            raise CheckpointError(f"{path}: damaged ({problem}); use another checkpoint")
        return record
