"""How long a run is, and its learning rate.

A length is counted in what its flag counts, and so is the course of the learning rate: in iterations with --train-iters
and --lr-decay-iters, in samples with --train-samples and --train-epochs. Where the global batch size changes in the
middle of a run, the learning rate goes on from where it was and comes to --min-lr at the end.
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
        iterations: steps in all.
        epoch_length: samples of one epoch, repeated ones included; 0 if unknown.
        samples: samples at which the run ends, where --train-samples or --train-epochs counts them, else None.
        batch_sizes: the global batch sizes that the run has had, and the one from here on; empty in a run that has one
            size from beginning to end.
    """

    iterations: int
    epoch_length: int
    samples: int | None = None
    batch_sizes: Sequence[BatchSizeChange] = ()

    @property
    def consumed_samples(self) -> int:
        """Samples consumed at the end, where `batch_sizes` are known; --train-samples may leave some out."""
        consumed = samples_after_iterations(self.batch_sizes, self.iterations)
        return consumed if self.samples is None else min(consumed, self.samples)


def run_length(
    training: TrainingArguments,
    batch_size: int,
    epoch_length: int,
    done: TrainingProgress | None = None,
    batch_sizes: Sequence[BatchSizeChange] = (),
) -> RunLength:
    """Length of a run from whichever of --train-iters, --train-samples and --train-epochs is given.

    --train-iters counts updates, whatever their batch size. With the others the iterations are those done and as many
    of the present batch size as the samples left make: with --train-epochs every sample is trained on that often, so
    the last batch may be smaller; --train-samples leaves an incomplete one out.

    Args:
        training: for the flag.
        batch_size: global batch size from here on.
        epoch_length: samples of one epoch; see Length.
        done: where the run stands; None at its beginning.
        batch_sizes: see Length.

    Raises:
        ConfigError: less than one global batch to train on.
    """
    done = done or TrainingProgress()
    if training.train_iters is not None:
        return RunLength(training.train_iters, epoch_length, None, batch_sizes)
    if training.train_epochs is not None:
        samples = training.train_epochs * epoch_length
        left = max(samples - done.consumed_samples, 0)
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
    """What a schedule counts, as one rising number of steps.

    A run with --train-epochs and --lr-warmup-iters 5 counts iterations during the warm-up and then samples. With a unit
    of 4 samples, and batches of 8 from its third iteration on:

        iteration     0  1  2  3  4  5 |  6  7 …
        samples       0  4  8 16 24 32 | 40 48 …
        steps         0  4  8 12 16 20 | 28 36 …

    As long as the batch size is the unit, steps are samples, as Megatron counts them.

    Attributes:
        unit: steps of an iteration that is counted as one.
        iterations: so many of the first iterations are counted as such, the later ones by their samples; None: all.
        samples: samples of those iterations.
    """

    unit: int
    iterations: int | None = None
    samples: int = 0

    def steps(self, iterations: int, samples: int) -> int:
        """Steps after so many iterations that consumed so many samples."""
        if self.iterations is None:
            return iterations * self.unit
        return min(iterations, self.iterations) * self.unit + max(samples - self.samples, 0)


def schedule_counter(training: TrainingArguments, batch_size: int, length: RunLength) -> ScheduleCounter:
    """What the schedule of a run counts: what its flags count."""
    sizes = length.batch_sizes or (BatchSizeChange(0, 0, batch_size),)
    unit, warmup = sizes[0].size, training.lr_warmup_iters
    if length.samples is None or training.lr_decay_iters is not None:
        return ScheduleCounter(unit)
    return ScheduleCounter(unit, warmup, samples_after_iterations(sizes, warmup))


class LearningRateSchedule(OptimizerParamScheduler):
    """megatron-core's schedule, whose steps are a function of the progress of the run.

    Args:
        counting: what it counts.
        optimizer, settings: as for OptimizerParamScheduler.
    """

    def __init__(self, counting: ScheduleCounter, optimizer: MegatronOptimizer, **settings: Any) -> None:
        self.counting = counting
        super().__init__(optimizer, **settings)

    def follow(self, progress: TrainingProgress) -> None:
        """Set learning rate and weight decay to those of a progress; what updated nothing is not counted."""
        self.num_steps = self.counting.steps(
            progress.iteration - progress.skipped_iterations, progress.consumed_samples - progress.skipped_samples
        )
        self.step(0)


def build_scheduler(
    training: TrainingArguments, batch_size: int, optimizer: MegatronOptimizer, length: RunLength
) -> LearningRateSchedule:
    """Learning rate and weight decay over the run.

    Raises:
        ConfigError: the warm-up is not shorter than the decay.
    """
    counting = schedule_counter(training, batch_size, length)
    decay = counting.steps(training.lr_decay_iters or length.iterations, length.samples or 0)
    if training.lr_warmup_fraction is not None:
        warmup = training.lr_warmup_fraction * decay
    else:
        warmup = training.lr_warmup_iters * counting.unit
    if warmup >= decay:
        raise ConfigError(
            f"--lr-warmup-iters {training.lr_warmup_iters}: the warm-up must end before the decay does, after "
            f"{training.lr_decay_iters or length.iterations} iterations; lower it, or raise --lr-decay-iters"
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
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=decay,
        wd_incr_style="constant",
        # A run that goes on uses its own flags for the schedule, so that --train-iters or --lr can be changed.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
