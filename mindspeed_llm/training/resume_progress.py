"""Restore the batch sizes and the position in the data order of a resumed run.

The position is counted in samples, so that any sequence of batch sizes reads every sample of an epoch exactly once.
Checkpoints of earlier versions do not record the batch sizes; this module infers them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mindspeed_llm.arguments.data_arguments import DataArguments
from mindspeed_llm.arguments.layout_rules import batch_problems
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.checkpoints import BatchSizeChange, RunMetadata, StartPoint, TrainingProgress, append_batch_size
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.training.learning_rate_schedule import RunLength, run_length


def keep_batch_size_of_run(arguments: PretrainArguments, start: StartPoint) -> PretrainArguments:
    """Keep the global batch size of a resumed run if the command has no --global-batch-size.

    Without that flag a new run uses one micro-batch per data-parallel rank. A resumed run keeps this size on any number
    of ranks and with any --micro-batch-size.

    Args:
        arguments: checked arguments.
        start: start point of the run.

    Returns:
        The arguments, with the recorded batch size if it applies.

    Raises:
        CheckpointError: the recorded batch size cannot be divided among the ranks of this start.
    """
    recorded = recorded_sizes(start)
    if not recorded or arguments.training.global_batch_size is not None:
        return arguments
    resumed = dataclasses.replace(arguments, batch_size_of_run=recorded[-1].size)
    problems = batch_problems(resumed)
    if problems:
        per_round = arguments.training.micro_batch_size * arguments.data_parallel_size
        raise CheckpointError(
            f"{start.folder}: this run has a global batch of {recorded[-1].size}, which is kept unless "
            f"--global-batch-size is given, but {'; '.join(problems)}; give --global-batch-size (a multiple of "
            f"{per_round}) to change it, or resume on another number of ranks"
        )
    return resumed


def order_rounding_unit(data: DataArguments, batch_size: int, start: StartPoint) -> int:
    """Return the number of samples that --padded-samples and --length-grouped round to.

    Args:
        data: flags of the data.
        batch_size: global batch size of a new run, in samples.
        start: start point of the run.

    Returns:
        The global batch size of the first start of the run, in samples.

    Raises:
        CheckpointError: the order depends on that size, and the checkpoint does not record it.
    """
    # Always the first size: with the current one a resumed run would have another order, and would repeat some samples
    # and leave others out.
    recorded = recorded_sizes(start)
    if recorded:
        return recorded[0].size
    by_unit = [("--padded-samples", data.padded_samples), ("--length-grouped", data.length_grouped)]
    flags = [flag for flag, given in by_unit if given]
    if start.progress.iteration and flags:
        raise CheckpointError(
            f"{start.folder}: its run.json does not record the global batch size with which {' and '.join(flags)} "
            "made the order of the data, so that some samples would be repeated and others left out; start a new run "
            "from its weights with --load and --finetune"
        )
    return batch_size


def start_point_and_length(
    training: TrainingArguments, batch_size: int, start: StartPoint, epoch_length: int
) -> tuple[StartPoint, RunLength]:
    """Return the start point with the exact number of consumed samples, and the length of the complete run.

    Args:
        training: flags for the length of the run.
        batch_size: global batch size from this start on; see `keep_batch_size_of_run`.
        start: start point that the checkpoint gives.
        epoch_length: samples of one training epoch; 0 if unknown.

    Raises:
        ConfigError: the run has less than one global batch to train on.
    """
    progress = exact_progress(start, epoch_length)
    recorded = recorded_sizes(start) or (BatchSizeChange(0, 0, batch_size),)
    sizes = append_batch_size(recorded, progress.iteration, progress.consumed_samples, batch_size)
    length = run_length(training, batch_size, epoch_length, progress, sizes)
    return dataclasses.replace(start, progress=progress), length


def exact_progress(start: StartPoint, epoch_length: int) -> TrainingProgress:
    """Return the progress of a run with the exact number of consumed and skipped samples.

    Checkpoints of this version record both. For checkpoints of earlier versions they are computed from the state of the
    schedule and the arguments.

    Args:
        start: start point that the checkpoint gives.
        epoch_length: samples of one training epoch; 0 if unknown.
    """
    progress, record = start.progress, start.record
    if record is None or record.batch_sizes or not progress.iteration:
        return progress
    recorded, consumed = recorded_sizes(start), progress.consumed_samples
    counted = record.scheduler.get("num_steps")
    # Earlier versions did not record skipped steps, but their schedule did not count them. With --no-load-optim that
    # schedule restarted at 0, so a difference does not mean that steps were skipped.
    schedule_restarted = _value(record.arguments, "checkpoint", "no_load_optim") is True
    skipped = max(consumed - counted, 0) if isinstance(counted, int) and not schedule_restarted else 0
    size = recorded[-1].size if recorded else max(consumed // progress.iteration, 1)
    epochs = _positive_int(record.arguments, "training", "train_epochs")
    end = epochs * epoch_length if epochs is not None else 0
    # Earlier versions counted the smaller last batch of --train-epochs as a full batch; the end of the run corrects it.
    return TrainingProgress(
        iteration=progress.iteration,
        consumed_samples=end if 0 < end < consumed < end + size else consumed,
        skipped_iterations=skipped // size,
        skipped_samples=skipped,
    )


def recorded_sizes(start: StartPoint) -> tuple[BatchSizeChange, ...]:
    """Return the global batch sizes of a run up to its start point.

    Returns:
        The sizes with the points from which they apply. Empty for a new run, or if the checkpoint does not reveal them.
    """
    record = start.record
    if record is None or not start.progress.iteration:
        return ()
    if record.batch_sizes:
        return tuple(record.batch_sizes)
    size = _batch_size_from_arguments(record)
    if size is None:
        # Without a remainder the run most likely had this one size; with one it certainly had several.
        size, rest = divmod(record.progress.consumed_samples, record.progress.iteration)
        if rest or size < 1:
            return ()
    return (BatchSizeChange(0, 0, size),)


def batch_notice(start: StartPoint, sizes: Sequence[BatchSizeChange], default: int) -> str | None:
    """Return a note for the start table if the global batch size changes or differs from the default.

    Args:
        start: start point of the run.
        sizes: the global batch sizes so far; the last is that of this start.
        default: global batch size of a new run of this command.

    Returns:
        The note, or None if there is nothing to report.
    """
    size, changes_here = sizes[-1].size, sizes[-1].iteration == start.progress.iteration
    before = sizes[-2].size if changes_here and len(sizes) > 1 else size
    if before != size:
        return f"global batch of {size} from here on, {before} before: the order of the samples does not change"
    if default != size:
        return f"global batch of {size}, as at the start of this run; --global-batch-size {default} would change it"
    return None


def _batch_size_from_arguments(record: RunMetadata) -> int | None:
    """Return the global batch size that the arguments in an old run.json imply; None if they do not."""
    given = _positive_int(record.arguments, "training", "global_batch_size")
    if given is not None:
        return given
    micro = _positive_int(record.arguments, "training", "micro_batch_size")
    ranks = _positive_int(record.arguments, "world_size")
    sizes = [
        _positive_int(record.arguments, "parallel", f"{kind}_parallel_size")
        for kind in ("tensor_model", "pipeline_model", "context")
    ]
    if micro is None or ranks is None or None in sizes:
        return None
    model_parallel = 1
    for parallel_size in sizes:
        model_parallel *= parallel_size or 1
    return micro * (ranks // model_parallel) or None


def _value(arguments: dict[str, Any], *path: str) -> Any:
    """Return the value at a path of the recorded arguments; None if there is none."""
    # The arguments in run.json are not validated, because they are only for information: any level may have any type.
    value: Any = arguments
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _positive_int(arguments: dict[str, Any], *path: str) -> int | None:
    """Return a positive integer at a path of the recorded arguments; None for any other value."""
    value = _value(arguments, *path)
    # bool is a subclass of int.
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
