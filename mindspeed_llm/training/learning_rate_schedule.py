"""Compute the length of a run and its learning rate schedule.

Both count what their flags count: iterations with --train-iters and --lr-decay-iters, samples with --train-samples and
--train-epochs. If the global batch size changes during a run, the learning rate continues from its current value and
still reaches --min-lr at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.checkpoints import BatchSizeChange, TrainingProgress, samples_after_iterations
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class RunLength:
    """Length of a run.

    Attributes:
        iterations: number of steps of the complete run.
        epoch_length: samples of one epoch, including repeated samples; 0 if unknown.
        samples: number of samples at which the run ends (--train-samples, --train-epochs); None with --train-iters.
        batch_sizes: the global batch sizes so far and the current one; empty: the batch size never changes.
    """

    iterations: int
    epoch_length: int
    samples: int | None = None
    batch_sizes: Sequence[BatchSizeChange] = ()

    @property
    def consumed_samples(self) -> int:
        """Samples consumed at the end of the run; `batch_sizes` must not be empty."""
        consumed = samples_after_iterations(self.batch_sizes, self.iterations)
        return consumed if self.samples is None else min(consumed, self.samples)


def run_length(
    training: TrainingArguments,
    batch_size: int,
    epoch_length: int,
    done: TrainingProgress | None = None,
    batch_sizes: Sequence[BatchSizeChange] = (),
) -> RunLength:
    """Compute the length of a run from --train-iters, --train-samples or --train-epochs.

    --train-iters counts updates of any batch size. With the other two flags the result is the number of finished
    iterations plus the remaining samples divided by the current batch size. --train-epochs rounds up, because every
    sample must be trained on in each epoch (the last batch may be smaller); --train-samples rounds down.

    Args:
        training: flags for the length of the run.
        batch_size: global batch size from this start on, in samples.
        epoch_length: samples of one epoch; see `RunLength`.
        done: progress of the run so far; None at its beginning.
        batch_sizes: see `RunLength`.

    Raises:
        ConfigError: the run has less than one global batch to train on.
    """
    done = done or TrainingProgress()
    if training.train_iters is not None:
        return RunLength(training.train_iters, epoch_length, None, batch_sizes)
    if training.train_epochs is not None:
        samples = training.train_epochs * epoch_length
        left = max(samples - done.consumed_samples, 0)
        # -(-a // b) is a / b, rounded up.
        return RunLength(done.iteration - (-left // batch_size), epoch_length, samples, batch_sizes)
    samples = training.train_samples or 0
    if samples < batch_size and not done.iteration:
        raise ConfigError(
            f"--train-samples: {samples} samples are less than one --global-batch-size of {batch_size}; lower it"
        )
    left = max(samples - done.consumed_samples, 0)
    return RunLength(done.iteration + left // batch_size, epoch_length, samples, batch_sizes)


@dataclass(frozen=True)
class ScheduleCounter:
    """Converts iterations and samples of a run into steps of its learning rate schedule.

    A run with --train-epochs and --lr-warmup-iters 5 counts iterations during the warm-up and samples after it. With a
    unit of 4 samples, and batches of 8 from its third iteration on:

        iteration     0  1  2  3  4  5 |  6  7 …
        samples       0  4  8 16 24 32 | 40 48 …
        steps         0  4  8 12 16 20 | 28 36 …

    While the batch size equals the unit, steps are samples, as in Megatron.

    Attributes:
        unit: steps per iteration, for the iterations that are counted as iterations.
        iterations: number of first iterations that are counted as iterations; later ones are counted by their samples.
            None: all iterations are counted as iterations.
        samples: samples of these first iterations.
    """

    unit: int
    iterations: int | None = None
    samples: int = 0

    def steps(self, iterations: int, samples: int) -> int:
        """Return the number of steps after `iterations` iterations that consumed `samples` samples."""
        if self.iterations is None:
            return iterations * self.unit
        return min(iterations, self.iterations) * self.unit + max(samples - self.samples, 0)


def schedule_counter(training: TrainingArguments, batch_size: int, length: RunLength) -> ScheduleCounter:
    """Build the step counter of a run's schedule from the flags that define its length.

    Args:
        training: flags for length, warm-up and decay.
        batch_size: global batch size of a new run, in samples.
        length: length of the run.
    """
    sizes = length.batch_sizes or (BatchSizeChange(0, 0, batch_size),)
    unit, warmup = sizes[0].size, training.lr_warmup_iters
    # --lr-decay-iters defines the decay in iterations, also if --train-epochs defines the length of the run.
    by_iterations = length.samples is None or training.lr_decay_iters is not None
    if by_iterations and training.lr_decay_samples is None:
        return ScheduleCounter(unit)
    return ScheduleCounter(unit, warmup, samples_after_iterations(sizes, warmup))


class LearningRateSchedule(OptimizerParamScheduler):
    """The learning rate schedule of megatron-core, with steps computed from the progress of the run.

    Args:
        counting: converts progress into steps.
        optimizer: as for OptimizerParamScheduler.
        **settings: as for OptimizerParamScheduler.
    """

    def __init__(self, counting: ScheduleCounter, optimizer: MegatronOptimizer, **settings: Any) -> None:
        self.counting = counting
        super().__init__(optimizer, **settings)

    def follow(self, progress: TrainingProgress) -> None:
        """Set learning rate and weight decay to their values at a progress of the run."""
        # Skipped iterations updated nothing, so they do not advance the schedule. Computing the steps from the progress
        # each time, instead of adding them up, makes a resumed run follow the same schedule.
        self.num_steps = self.counting.steps(
            progress.iteration - progress.skipped_iterations, progress.consumed_samples - progress.skipped_samples
        )
        self.step(0)  # applies `num_steps` to the parameter groups without advancing it


def build_scheduler(
    training: TrainingArguments, batch_size: int, optimizer: MegatronOptimizer, length: RunLength
) -> LearningRateSchedule:
    """Build the learning rate schedule of a run; weight decay is constant.

    Args:
        training: flags of the schedule.
        batch_size: global batch size from this start on, in samples.
        optimizer: optimizer whose parameter groups get the values.
        length: length of the run.

    Raises:
        ConfigError: the warm-up is not shorter than the decay, or the last part of WSD does not fit behind it.
    """
    counting = schedule_counter(training, batch_size, length)
    decay = counting.steps(
        training.lr_decay_iters or length.iterations, training.lr_decay_samples or length.samples or 0
    )
    # --lr-warmup-fraction is a part of the decay, which is in steps; --lr-warmup-iters counts iterations.
    if training.lr_warmup_fraction is not None:
        warmup = training.lr_warmup_fraction * decay
    else:
        warmup = training.lr_warmup_samples or training.lr_warmup_iters * counting.unit
    if warmup >= decay:
        raise ConfigError(_endless_warmup_message(training, length))
    last_part = training.lr_wsd_decay_samples or (training.lr_wsd_decay_iters or 0) * counting.unit
    if warmup + last_part > decay:
        raise ConfigError(
            f"--lr-decay-style WSD: warm-up and last part take {warmup + last_part:,.0f} samples, the decay "
            f"{decay:,}; lower --lr-wsd-decay-iters or --lr-wsd-decay-samples, or the warm-up"
        )
    return LearningRateSchedule(
        counting,
        optimizer,
        init_lr=0.0,
        max_lr=training.lr,
        min_lr=training.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=training.lr_decay_style,
        wsd_decay_steps=last_part or None,
        lr_wsd_decay_style=training.lr_wsd_decay_style if last_part else None,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=decay,
        wd_incr_style="constant",
        # The state of the schedule in a checkpoint is not loaded: `schedule_of_checkpoint.py` replaces the flags.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def _endless_warmup_message(training: TrainingArguments, length: RunLength) -> str:
    if training.lr_warmup_samples:
        return (
            f"--lr-warmup-samples {training.lr_warmup_samples}: the warm-up must end before the decay does, after "
            f"{training.lr_decay_samples or length.samples} samples; lower it"
        )
    return (
        f"--lr-warmup-iters {training.lr_warmup_iters}: the warm-up must end before the decay does, after "
        f"{training.lr_decay_iters or length.iterations} iterations; lower it, or raise --lr-decay-iters"
    )
