"""The base model of an adapter: the directory that it is read from, and whether it is the one that was trained on.

--load DIR            the base model: a Hugging Face folder or a checkpoint of a complete model
--save/base/          the base model of a run without --load, whose random weights are saved once and never removed
--save/iter_N/        checkpoints of the adapter; adapter.json names the base model by its hash
"""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.adapters import AdapterRecord, BaseModel
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints
from mindspeed_llm.conversion import base_difference
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.checkpoint_directory import ADAPTER, TRACKER
from mindspeed_llm.storage.hub_names import download_advice

RANDOM_BASE = "base"


def find_base(checkpoint: CheckpointArguments) -> Path | None:
    """Return the folder of the base model.

    Args:
        checkpoint: the flags.

    Returns:
        A Hugging Face folder or an iter_ folder; None if the base model has random weights that are not saved yet.

    Raises:
        CheckpointError: --load contains no complete model.
    """
    load, save = checkpoint.load, checkpoint.save
    if load is not None and is_hugging_face_folder(load):
        return Path(load)
    if load is not None:
        newest = RunCheckpoints(Path(load)).latest()
        if newest is None:
            raise CheckpointError(
                f"--load {load}: holds no model (neither config.json nor {TRACKER}); give the Hugging Face folder or "
                f"the checkpoint of the base model{download_advice(load)}"
            )
        refuse_adapter(newest, "--load")
        return newest
    return RunCheckpoints(Path(save) / RANDOM_BASE).latest() if save is not None else None


def refuse_adapter(folder: Path, flag: str) -> None:
    """Refuse a checkpoint that contains an adapter where a complete model is needed.

    Args:
        folder: an iter_ folder.
        flag: flag that names its directory.

    Raises:
        CheckpointError: the checkpoint contains an adapter.
    """
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{flag} {folder.parent}: {folder.name} contains an adapter and no complete model; give it with "
            f"--lora-load, and its base model with {flag}"
        )


def check_base(folder: Path, base: BaseModel) -> None:
    """Check that an adapter was trained on a base model.

    Args:
        folder: iter_ folder of the adapter.
        base: the base model of this run.

    Raises:
        CheckpointError: it was trained on another one.
    """
    record = AdapterRecord.read(folder)
    before = record.base if record is not None else None
    if before is not None and before.sha256 != base.sha256:
        difference = base_difference(before, base)
        raise CheckpointError(
            f"{folder}: {base.path or 'the random model'} {difference}; give the same one with --load"
        )
