"""Take learning rate, schedule and weight decay of a resumed run from its checkpoint.

This is --use-checkpoint-opt_param-scheduler. Without it a resumed run takes them from the flags.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mindspeed_llm.arguments.bounds import violated_bound
from mindspeed_llm.arguments.dataclass_parser import Flag, declared_flags
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.checkpoints import StartPoint
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.json_dataclass import decode_dataclass

FLAG = "--use-checkpoint-opt_param-scheduler"
# Flags of learning rate, schedule and weight decay.
FIELDS = (
    "lr",
    "min_lr",
    "lr_decay_style",
    "lr_decay_iters",
    "lr_decay_samples",
    "lr_wsd_decay_style",
    "lr_wsd_decay_iters",
    "lr_wsd_decay_samples",
    "lr_warmup_fraction",
    "lr_warmup_iters",
    "lr_warmup_samples",
    "weight_decay",
)


def keep_schedule_of_checkpoint(
    arguments: PretrainArguments, start: StartPoint, epoch_length: int
) -> tuple[PretrainArguments, StartPoint]:
    """Replace the flags of the schedule by those of the checkpoint, with --use-checkpoint-opt_param-scheduler.

    A run that starts at iteration 0 keeps its flags: Megatron does not load the schedule with --finetune either.

    Args:
        arguments: checked arguments.
        start: start point of the run.
        epoch_length: samples of one training epoch.

    Returns:
        The arguments, and the start point with a notice for each flag that is not used.

    Raises:
        CheckpointError: the checkpoint does not contain a valid schedule.
    """
    if not arguments.training.use_checkpoint_scheduler or start.record is None or not start.progress.iteration:
        return arguments, start
    recorded = _recorded_training(start)
    kept = {name: getattr(recorded, name) for name in FIELDS}
    # The decay has the length of the run that wrote the checkpoint, whatever the length of this one is.
    if kept["lr_decay_iters"] is None and kept["lr_decay_samples"] is None:
        samples = recorded.train_samples or (recorded.train_epochs or 0) * epoch_length
        kept["lr_decay_iters"] = recorded.train_iters
        kept["lr_decay_samples"] = samples or None
    training = dataclasses.replace(arguments.training, **kept)
    changed = [flag for flag in _flags() if getattr(arguments.training, flag.field.name) != kept[flag.field.name]]
    # `compare_identity` has reported the values of the flags as if they were used.
    names = tuple(f"{flag.name}: " for flag in changed)
    notices = [line for line in start.notices if not names or not line.startswith(names)]
    notices += [
        f"{flag.name}: {_shown(kept[flag.field.name])} of the checkpoint is kept ({FLAG})"
        for flag in changed
        if flag.name in arguments.given
    ]
    return dataclasses.replace(arguments, training=training), dataclasses.replace(start, notices=tuple(notices))


def _recorded_training(start: StartPoint) -> TrainingArguments:
    """Return the training arguments in run.json.

    Raises:
        CheckpointError: they are missing or invalid.
    """
    assert start.record is not None
    try:
        recorded: TrainingArguments = decode_dataclass(
            start.record.arguments.get("training", {}), TrainingArguments, "training"
        )
        for flag in _flags():
            value = getattr(recorded, flag.field.name)
            if value is not None and flag.kind in (int, float):
                bound = violated_bound(flag.field.metadata, value)
                if bound is not None:
                    raise ValueError(f"training.{flag.field.name} must be {bound}")
    except ValueError as error:
        raise CheckpointError(
            f"{start.folder}: its run.json has no valid schedule ({error}); leave {FLAG} out to take it from the flags"
        ) from error
    return recorded


def _flags() -> list[Flag]:
    return [flag for flag in declared_flags(TrainingArguments) if flag.field.name in FIELDS]


def _shown(value: Any) -> str:
    return "no value" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
