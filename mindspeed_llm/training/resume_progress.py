"""What a resumed run keeps of the run before, besides the tensors: its batch sizes and its place in the order.

The order of the data is counted in samples, so that any sequence of batch sizes reads every sample of an epoch once.
Records of earlier versions do not have the batch sizes; they are inferred here.
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
    """The arguments with the resumed run's global batch size, where the command has no --global-batch-size.

    Without that flag the first start takes one micro-batch for each data-parallel rank; the size stays when the run is
    resumed on another number of ranks or with another --micro-batch-size.

    Raises:
        CheckpointError: the ranks of this start cannot divide that size.
    """
    recorded = recorded_sizes(start)
    if not recorded or arguments.training.global_batch_size is not None:
        return arguments
    resumed = dataclasses.replace(arguments, batch_size_of_run=recorded[-1].size)
    problems = batch_problems(resumed)
    if problems:
        per_round = arguments.training.micro_batch_size * arguments.data_parallel_size
        raise CheckpointError(
            f"{start.folder}: this run has a global batch of {recorded[-1].size}, which stays where "
            f"--global-batch-size is not given, but {'; '.join(problems)}; give --global-batch-size (a multiple of "
            f"{per_round}) to go on with another one, or resume on another number of ranks"
        )
    return resumed


def order_rounding_unit(data: DataArguments, batch_size: int, start: StartPoint) -> int:
    """Samples that --padded-samples and --length-grouped round to: the global batch size of the run's first start.

    Args:
        data: for these flags.
        batch_size: global batch size of a new run.
        start: where the run starts.

    Raises:
        CheckpointError: the order depends on that size, and nothing tells it.
    """
    recorded = recorded_sizes(start)
    if recorded:
        return recorded[0].size
    by_unit = [("--padded-samples", data.padded_samples), ("--length-grouped", data.length_grouped)]
    flags = [flag for flag, given in by_unit if given]
    if start.progress.iteration and flags:
        raise CheckpointError(
            f"{start.folder}: its run.json does not say with which global batch size {' and '.join(flags)} made the "
            "order of the data, so that some samples would be repeated and others left out; start a new run from its "
            "weights with --load and --finetune"
        )
    return batch_size


def start_point_and_length(
    training: TrainingArguments, batch_size: int, start: StartPoint, epoch_length: int
) -> tuple[StartPoint, RunLength]:
    """The start with the samples that were really consumed, and the length of the whole run.

    Args:
        training: for the length of the run.
        batch_size: global batch size from here on; see `keep_batch_size_of_run`.
        start: where the run starts.
        epoch_length: samples of an epoch of training; 0 if unknown.

    Raises:
        ConfigError: less than one global batch to train on.
    """
    progress = exact_progress(start, epoch_length)
    recorded = recorded_sizes(start) or (BatchSizeChange(0, 0, batch_size),)
    sizes = append_batch_size(recorded, progress.iteration, progress.consumed_samples, batch_size)
    length = run_length(training, batch_size, epoch_length, progress, sizes)
    return dataclasses.replace(start, progress=progress), length


def exact_progress(start: StartPoint, epoch_length: int) -> TrainingProgress:
    """Where the run stands, with the samples that were really consumed.

    Earlier versions counted the smaller last batch of --train-epochs as a whole one, and did not count what the
    schedule skips. With --no-load-optim their schedule began again at 0; what it did not count then was not skipped.

    Args:
        epoch_length: samples of an epoch of training; 0 if unknown.
    """
    progress, record = start.progress, start.record
    if record is None or record.batch_sizes or not progress.iteration:
        return progress
    recorded, consumed = recorded_sizes(start), progress.consumed_samples
    counted = record.scheduler.get("num_steps")
    began_again = _value(record.arguments, "checkpoint", "no_load_optim") is True
    skipped = max(consumed - counted, 0) if isinstance(counted, int) and not began_again else 0
    size = recorded[-1].size if recorded else max(consumed // progress.iteration, 1)
    epochs = _number(record.arguments, "training", "train_epochs")
    end = epochs * epoch_length if epochs is not None else 0
    return TrainingProgress(
        iteration=progress.iteration,
        consumed_samples=end if 0 < end < consumed < end + size else consumed,
        skipped_iterations=skipped // size,
        skipped_samples=skipped,
    )


def recorded_sizes(start: StartPoint) -> tuple[BatchSizeChange, ...]:
    """The global batch sizes that a run had up to its start; none for a new run, or where nothing tells them."""
    record = start.record
    if record is None or not start.progress.iteration:
        return ()
    if record.batch_sizes:
        return tuple(record.batch_sizes)
    size = _size_in_arguments(record)
    if size is None:
        size, rest = divmod(record.progress.consumed_samples, record.progress.iteration)
        if rest or size < 1:
            return ()
    return (BatchSizeChange(0, 0, size),)


def batch_notice(start: StartPoint, sizes: Sequence[BatchSizeChange], default: int) -> str | None:
    """A clause for the start table where the global batch size is not the one before, or not what the ranks suggest.

    Args:
        start: where the run starts.
        sizes: the global batch sizes up to here; the last is that of this start.
        default: the size of a new run of this command.
    """
    size, here = sizes[-1].size, sizes[-1].iteration == start.progress.iteration
    before = sizes[-2].size if here and len(sizes) > 1 else size
    if before != size:
        return f"global batch of {size} from here on, {before} before: the order of the samples does not change"
    if default != size:
        return f"global batch of {size}, as this run began; --global-batch-size {default} would change it"
    return None


def _size_in_arguments(record: RunMetadata) -> int | None:
    """The global batch size as the arguments in a record of an earlier version tell it."""
    given = _number(record.arguments, "training", "global_batch_size")
    if given is not None:
        return given
    micro = _number(record.arguments, "training", "micro_batch_size")
    ranks = _number(record.arguments, "world_size")
    sizes = [
        _number(record.arguments, "parallel", f"{kind}_parallel_size")
        for kind in ("tensor_model", "pipeline_model", "context")
    ]
    if micro is None or ranks is None or None in sizes:
        return None
    model_parallel = 1
    for one in sizes:
        model_parallel *= one or 1
    return micro * (ranks // model_parallel) or None


def _value(arguments: dict[str, Any], *path: str) -> Any:
    """What the arguments of a record, which are there for people and may hold anything, hold at a path."""
    value: Any = arguments
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _number(arguments: dict[str, Any], *path: str) -> int | None:
    """A number from 1 up in the arguments of a record."""
    value = _value(arguments, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
