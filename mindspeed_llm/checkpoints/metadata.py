"""Read and write run.json, the metadata of the run that saved a checkpoint.

It is plain JSON, so that reading it runs no code and a person can look at it.
"""

from __future__ import annotations

import json
import math
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
    """Progress of a run.

    Attributes:
        iteration: number of completed iterations.
        consumed_samples: number of packs (or unpacked samples) consumed by all data-parallel ranks together. This is
            the position in the order of the data.
        skipped_iterations: number of completed iterations without an update of the weights, because of an overflow in
            fp16, a batch without a trained token, or --skip-bad-steps. The learning rate schedule does not count them.
        skipped_samples: number of consumed samples in those iterations.
        best_loss: lowest held-out loss of the evaluations during training; None before the first.
        best_iteration: iteration of that evaluation.
        evaluations_since_best: number of evaluations after it.
    """

    iteration: int = 0
    consumed_samples: int = 0
    skipped_iterations: int = 0
    skipped_samples: int = 0
    best_loss: float | None = None
    best_iteration: int | None = None
    evaluations_since_best: int = 0

    def note_evaluation(self, loss: float) -> bool:
        """Note the held-out loss of an evaluation, and return whether it is the lowest so far.

        Args:
            loss: the loss; NaN counts as higher than any other.
        """
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_iteration, self.evaluations_since_best = loss, self.iteration, 0
            return True
        self.evaluations_since_best += 1
        return False

    def problem(self) -> str | None:
        """Return what is wrong with the numbers of skipped iterations and samples; None if they are valid."""
        fits = 0 <= self.skipped_iterations <= self.iteration and 0 <= self.skipped_samples <= self.consumed_samples
        return None if fits else "skipped iterations or samples exceed the progress, or are negative"


@dataclass
class RunMetadata:
    """Metadata of a checkpoint: everything that a resume needs besides the tensors.

    Attributes:
        progress: progress of the run when it was saved.
        identity: values that a resume compares with the command (data, model, seed, start); see run_identity.py.
        layout: world size, tensor- and pipeline-parallel size, device, and whether the optimizer is distributed.
        scheduler: state of the learning rate schedule.
        batch_sizes: history of the global batch sizes. The first size is the rounding unit of the order of the samples.
            Empty if an earlier version wrote the file.
        has_optimizer: whether the checkpoint contains the optimizer state.
        has_rng: whether the checkpoint contains the RNG states.
        only_best: whether it was saved only because its held-out loss was the lowest so far (--best-checkpoint).
        arguments: all arguments of the run, for people, and to compute values that an older `identity` lacks.
        versions: versions of torch, megatron-core and this package, for people.
        identity_version: format of `identity`; see `run_identity.VERSION`.
    """

    progress: TrainingProgress
    identity: dict[str, Any]
    layout: dict[str, Any]
    scheduler: dict[str, Any] = field(default_factory=dict)
    batch_sizes: list[BatchSizeChange] = field(default_factory=list)
    has_optimizer: bool = True
    has_rng: bool = True
    only_best: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    identity_version: int = 1

    def write(self, folder: Path) -> None:
        """Write run.json atomically into the directory of a checkpoint.

        Args:
            folder: the directory of the checkpoint.
        """
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_atomically(folder / RECORD, (json.dumps(values, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> RunMetadata | None:
        """Read run.json from the directory of a checkpoint, and validate it.

        Args:
            folder: the directory of the checkpoint.

        Returns:
            The metadata; None if there is no run.json, because another program wrote the checkpoint.

        Raises:
            CheckpointError: The file is damaged, or another version of this program wrote it.
        """
        path = folder / RECORD
        try:
            raw = json.loads(read_file_text(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            # ValueError covers invalid JSON and UTF-8; deeply nested brackets in a damaged file raise RecursionError.
            raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise CheckpointError(f"{path}: not the metadata of a checkpoint of this program; use another checkpoint")
        if raw.get("version") != VERSION:
            raise CheckpointError(f"{path}: written by another version of this program; update it")
        try:
            metadata: RunMetadata = decode_dataclass(raw, cls, "")
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged ({error}); use another checkpoint") from error
        # Correct types are not enough: these numbers select the data and the learning rate of every later step.
        if min(metadata.progress.iteration, metadata.progress.consumed_samples) < 0:
            raise CheckpointError(f"{path}: damaged (progress is negative); use another checkpoint")
        problem = metadata.progress.problem() or batch_size_problem(
            metadata.batch_sizes, metadata.progress.iteration, metadata.progress.consumed_samples
        )
        if problem is not None:
            raise CheckpointError(f"{path}: damaged ({problem}); use another checkpoint")
        return metadata
