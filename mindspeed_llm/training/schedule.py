"""How long a run is, and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.errors import ConfigError


@dataclass(frozen=True)
class Length:
    """Length of a run.

    Attributes:
        iterations: steps in all.
        epoch_length: samples of one epoch (with --padded-samples a multiple of the global batch); 0 if unknown.
        samples: samples of the whole run where its last batch is smaller than the others (--train-epochs), else None.
    """

    iterations: int
    epoch_length: int
    samples: int | None = None


def run_length(arguments: PretrainArguments, epoch_length: int) -> Length:
    """Steps from whichever of --train-iters, --train-samples and --train-epochs is given.

    With --train-epochs every sample is trained on that often, so the last batch may be smaller.

    Raises:
        ConfigError: less than one global batch to train on.
    """
    training, batch = arguments.training, arguments.global_batch_size
    if training.train_iters is not None:
        return Length(training.train_iters, epoch_length)
    if training.train_epochs is not None:
        samples = training.train_epochs * epoch_length
        return Length(-(-samples // batch), epoch_length, samples if samples % batch else None)
    assert training.train_samples is not None
    if training.train_samples < batch:
        raise ConfigError(
            f"--train-samples: {training.train_samples} samples are less than one --global-batch-size of {batch}; "
            "lower it"
        )
    return Length(training.train_samples // batch, epoch_length)


def build_scheduler(
    arguments: PretrainArguments, optimizer: MegatronOptimizer, length: Length
) -> OptimizerParamScheduler:
    """Learning rate and weight decay over the run, in samples, as Megatron counts them.

    Raises:
        ConfigError: the warm-up is not shorter than the decay.
    """
    training, batch = arguments.training, arguments.global_batch_size
    decay = (training.lr_decay_iters or length.iterations) * batch
    if training.lr_warmup_fraction is not None:
        warmup = training.lr_warmup_fraction * decay
    else:
        warmup = training.lr_warmup_iters * batch
    if warmup >= decay:
        raise ConfigError(
            f"--lr-warmup-iters {training.lr_warmup_iters}: the warm-up must end before the decay does, after "
            f"{decay // batch} iterations; lower it, or raise --lr-decay-iters"
        )
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=training.lr,
        min_lr=training.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=training.lr_decay_style,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=length.iterations * batch,
        wd_incr_style="constant",
        # A run that goes on uses its own flags for the schedule, so that --train-iters or --lr can be changed.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )
