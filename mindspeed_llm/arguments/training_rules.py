"""Rules between the flags of training length, learning rate schedule, recomputation and optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import product

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.errors import ConfigError

ACTIVATION_FUNCTION = "--recompute-activation-function"
LENGTHS = ("--train-iters", "--train-samples", "--train-epochs")
RECOMPUTE = ("--recompute-granularity", "--recompute-activations")
# Flags on which `TrainingArguments.recompute` depends.
GRANULARITY = (*RECOMPUTE, ACTIVATION_FUNCTION, "--recompute-method", "--recompute-num-layers")


def _given_lengths(arguments: PretrainArguments) -> list[str]:
    training = arguments.training
    values = (training.train_iters, training.train_samples, training.train_epochs)
    return [f"{flag} {value}" for flag, value in zip(LENGTHS, values, strict=True) if value is not None]


def _endless_warmup(arguments: PretrainArguments) -> bool:
    """Return whether the warm-up is at least as long as the decay."""
    training = arguments.training
    decay = training.lr_decay_iters or training.train_iters
    return decay is not None and training.lr_warmup_iters >= decay


def _needs_samples(flag: str, value: Callable[[TrainingArguments], int | None]) -> Rule[PretrainArguments]:
    """Return the rule that a flag in samples needs a training length in samples or epochs."""
    return Rule[PretrainArguments](
        (flag, "--train-iters"),
        lambda args: value(args.training) is not None and args.training.train_iters is not None,
        f"{{{flag}}} counts packs or blocks, --train-iters updates; use {flag.replace('samples', 'iters')}, or give "
        "--train-samples or --train-epochs",
    )


# Flags of the schedule in samples and in iterations → their fields.
IN_SAMPLES = {
    "--lr-warmup-samples": "lr_warmup_samples",
    "--lr-decay-samples": "lr_decay_samples",
    "--lr-wsd-decay-samples": "lr_wsd_decay_samples",
}
IN_ITERATIONS = {
    "--lr-warmup-iters": "lr_warmup_iters",
    "--lr-decay-iters": "lr_decay_iters",
    "--lr-wsd-decay-iters": "lr_wsd_decay_iters",
}


def _one_unit(first: tuple[str, str], second: tuple[str, str]) -> Rule[PretrainArguments]:
    """Return the rule that two flags of the schedule, one in samples, are not combined."""
    return Rule[PretrainArguments](
        (first[0], second[0]),
        lambda args: bool(getattr(args.training, first[1]) and getattr(args.training, second[1])),
        f"{{{first[0]}}} and {{{second[0]}}}: keep one of the flags, so that the schedule counts in one unit",
    )


def _given_wsd(training: TrainingArguments) -> int | None:
    return training.lr_wsd_decay_iters or training.lr_wsd_decay_samples


def _schedule_parts(arguments: PretrainArguments) -> tuple[float, float, float] | None:
    """Return decay, warm-up and last part of WSD in iterations or samples; None if the data decide the decay."""
    training = arguments.training
    if training.train_iters is not None or training.lr_decay_iters:
        decay, warmup = training.lr_decay_iters or training.train_iters, training.lr_warmup_iters
        last = training.lr_wsd_decay_iters
    else:
        decay, warmup = training.lr_decay_samples or training.train_samples, training.lr_warmup_samples
        last = training.lr_wsd_decay_samples
    if decay is None:
        return None
    fraction = training.lr_warmup_fraction
    return decay, warmup if fraction is None else fraction * decay, last or 0


def _endless_warmup_in_samples(arguments: PretrainArguments) -> bool:
    decay = arguments.training.lr_decay_samples or arguments.training.train_samples
    return decay is not None and arguments.training.lr_warmup_samples >= decay


def _longer_than_decay(arguments: PretrainArguments) -> bool:
    """Return whether warm-up and last part of WSD overlap, as far as the flags alone tell."""
    parts = _schedule_parts(arguments)
    return parts is not None and parts[2] > 0 and parts[1] < parts[0] < parts[1] + parts[2]


def _longer_than_decay_message(arguments: PretrainArguments) -> str:
    training = arguments.training
    last, warmup, decay = (
        ("--lr-wsd-decay-iters", "--lr-warmup-iters", "--lr-decay-iters, or else --train-iters")
        if training.lr_wsd_decay_iters
        else ("--lr-wsd-decay-samples", "--lr-warmup-samples", "--lr-decay-samples, or else --train-samples")
    )
    warmup = warmup if training.lr_warmup_fraction is None else "--lr-warmup-fraction"
    return f"{last} {_given_wsd(training)} and {warmup} together are longer than the decay ({decay}); lower them"


_SCHEDULE = (
    Rule[PretrainArguments](
        LENGTHS,
        lambda args: not _given_lengths(args),
        "the training length is missing: give --train-iters, --train-samples or --train-epochs",
    ),
    Rule[PretrainArguments](
        LENGTHS,
        lambda args: len(_given_lengths(args)) > 1,
        lambda args: (
            f"{' and '.join(_given_lengths(args))}: the training length is given more than once; keep one flag"
        ),
    ),
    Rule[PretrainArguments](
        ("--min-lr", "--lr"),
        lambda args: args.training.min_lr > args.training.lr,
        "{--min-lr} is above {--lr}; lower it",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-fraction", "--lr-warmup-iters"),
        lambda args: args.training.lr_warmup_fraction is not None and args.training.lr_warmup_iters,
        "{--lr-warmup-fraction} and {--lr-warmup-iters}: keep one of the flags",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-iters", "--train-samples"),
        lambda args: args.training.train_samples is not None and args.training.lr_warmup_iters,
        "--lr-warmup-iters cannot be combined with --train-samples; use --lr-warmup-samples, or --train-iters",
    ),
    Rule[PretrainArguments](
        ("--lr-decay-iters", "--lr-warmup-iters", "--train-samples"),
        lambda args: (
            args.training.train_samples is not None
            and args.training.lr_decay_iters is not None
            and not args.training.lr_warmup_iters
        ),
        "--lr-decay-iters cannot be combined with --train-samples; use --lr-decay-samples, or --train-iters",
    ),
    *(
        _needs_samples(flag, value)
        for flag, value in (
            ("--lr-warmup-samples", lambda training: training.lr_warmup_samples or None),
            ("--lr-decay-samples", lambda training: training.lr_decay_samples),
            ("--lr-wsd-decay-samples", lambda training: training.lr_wsd_decay_samples),
        )
    ),
    *(_one_unit(first, second) for first, second in product(IN_SAMPLES.items(), IN_ITERATIONS.items())),
    _one_unit(("--lr-warmup-samples", "lr_warmup_samples"), ("--lr-warmup-fraction", "lr_warmup_fraction")),
    Rule[PretrainArguments](
        ("--lr-decay-style", "--lr-wsd-decay-iters", "--lr-wsd-decay-samples"),
        lambda args: args.training.lr_decay_style == "WSD" and not _given_wsd(args.training),
        "--lr-decay-style WSD needs --lr-wsd-decay-iters or --lr-wsd-decay-samples, the length of its last part",
    ),
    Rule[PretrainArguments](
        ("--lr-decay-style", "--lr-wsd-decay-iters", "--lr-wsd-decay-samples"),
        lambda args: args.training.lr_decay_style != "WSD" and _given_wsd(args.training),
        "--lr-wsd-decay-iters and --lr-wsd-decay-samples need --lr-decay-style WSD; add it, or leave them out",
    ),
    Rule[PretrainArguments](
        ("--lr-wsd-decay-iters", "--train-samples"),
        lambda args: args.training.train_samples is not None and args.training.lr_wsd_decay_iters is not None,
        "--lr-wsd-decay-iters cannot be combined with --train-samples; use --lr-wsd-decay-samples, or --train-iters",
    ),
    Rule[PretrainArguments](
        (*IN_SAMPLES, *IN_ITERATIONS, "--lr-warmup-fraction", *LENGTHS),
        _longer_than_decay,
        _longer_than_decay_message,
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-samples", "--lr-decay-samples", "--train-samples"),
        _endless_warmup_in_samples,
        "{--lr-warmup-samples} is not less than the decay (--lr-decay-samples, or else --train-samples); lower it",
    ),
    Rule[PretrainArguments](
        ("--lr-wsd-decay-style", "--lr-decay-style"),
        lambda args: (
            args.training.lr_decay_style != "WSD"
            and args.training.lr_wsd_decay_style != TrainingArguments.lr_wsd_decay_style
        ),
        "{--lr-wsd-decay-style} needs --lr-decay-style WSD; add it, or leave the flag out",
    ),
    Rule[PretrainArguments](
        ("--use-checkpoint-opt_param-scheduler", "--override-opt_param-scheduler"),
        lambda args: args.training.use_checkpoint_scheduler and args.training.override_scheduler,
        "--use-checkpoint-opt_param-scheduler and --override-opt_param-scheduler: keep one of the flags",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-iters", "--lr-decay-iters"),
        lambda args: args.training.lr_decay_iters and _endless_warmup(args),
        "{--lr-warmup-iters} is not less than {--lr-decay-iters}; lower it",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-iters", "--lr-decay-iters", "--train-iters"),
        lambda args: not args.training.lr_decay_iters and _endless_warmup(args),
        "{--lr-warmup-iters} is not less than {--train-iters}; lower it",
    ),
)


def _twice_recomputed(arguments: PretrainArguments) -> bool:
    return arguments.training.recompute_activations and arguments.training.recompute_granularity == "full"


def _recomputes_no_layers(arguments: PretrainArguments) -> bool:
    """Return whether complete layers are not recomputed, so that method and number of layers have no effect."""
    training = arguments.training
    if training.recompute == "full" or training.recomputes_no_complete_layer:
        return False
    return not _twice_recomputed(arguments)


def _stages(arguments: PretrainArguments) -> tuple[int, ...]:
    """Return the number of layers of each pipeline stage; without --num-layer-list of any stage."""
    # An invalid list is reported by another rule.
    with contextlib.suppress(ConfigError):
        if arguments.parallel.layers_of_stages is not None:
            return arguments.parallel.layers_of_stages
    return (arguments.model.num_layers // arguments.parallel.pipeline_model_parallel_size,)


def _layers(arguments: PretrainArguments) -> int:
    """Return the number of layers of the largest pipeline stage."""
    return max(_stages(arguments))


def _undivided_chunk(arguments: PretrainArguments) -> int | None:
    """Return the layers of a model chunk, a stage or a virtual stage, that the groups do not divide; else None."""
    group = arguments.training.recompute_num_layers or 1
    chunks = (layers // (arguments.virtual_stages or 1) for layers in _stages(arguments))
    return next((layers for layers in chunks if layers % group), None)


def _too_many_recomputed(arguments: PretrainArguments) -> bool:
    # There are 0 layers per stage if the pipeline has more stages than layers, which is reported by another rule.
    return (arguments.training.recompute_num_layers or 0) > _layers(arguments) > 0


def _uneven_groups(arguments: PretrainArguments) -> bool:
    """Return whether the last group of recomputed layers would be incomplete."""
    # megatron-core does not check this and would index layers that do not exist.
    training = arguments.training
    if training.recompute_method != "uniform" or _too_many_recomputed(arguments):
        return False
    return _undivided_chunk(arguments) is not None


_RECOMPUTE = (
    Rule[PretrainArguments](
        RECOMPUTE,
        _twice_recomputed,
        "--recompute-activations means --recompute-granularity selective, not full; keep one of the flags",
    ),
    Rule[PretrainArguments](
        GRANULARITY,
        lambda args: args.training.recompute == "full" and args.training.recompute_method is None,
        "--recompute-granularity full needs --recompute-method; give uniform or block",
    ),
    Rule[PretrainArguments](
        GRANULARITY,
        lambda args: args.training.recompute == "full" and args.training.recompute_num_layers is None,
        "--recompute-granularity full needs --recompute-num-layers; give for example 1",
    ),
    Rule[PretrainArguments](
        GRANULARITY,
        lambda args: _recomputes_no_layers(args) and args.training.recompute_method is not None,
        "{--recompute-method} has an effect only with --recompute-granularity full; leave it out",
    ),
    Rule[PretrainArguments](
        GRANULARITY,
        lambda args: _recomputes_no_layers(args) and args.training.recompute_num_layers is not None,
        "{--recompute-num-layers} has an effect only with --recompute-granularity full; leave it out",
    ),
    Rule[PretrainArguments](
        (ACTIVATION_FUNCTION, "--recompute-method"),
        lambda args: args.training.recompute_activation_function and args.training.recompute_method == "uniform",
        "--recompute-activation-function has no effect with --recompute-method uniform, which recomputes every layer "
        "completely; leave it out, or use block",
    ),
    Rule[PretrainArguments](
        (ACTIVATION_FUNCTION, f"{ACTIVATION_FUNCTION}-num-layers"),
        lambda args: (
            args.training.recompute_activation_function_num_layers is not None
            and not args.training.recompute_activation_function
        ),
        "{--recompute-activation-function-num-layers} needs --recompute-activation-function; add it",
    ),
    Rule[PretrainArguments](
        ("--recompute-num-layers", "--num-layers", "--pipeline-model-parallel-size", "--num-layer-list"),
        _too_many_recomputed,
        lambda args: (
            f"--recompute-num-layers {args.training.recompute_num_layers}: a pipeline stage has {_layers(args)} layers"
            "; give at most this number"
        ),
    ),
    Rule[PretrainArguments](
        (
            "--recompute-num-layers",
            "--recompute-method",
            "--num-layers",
            "--pipeline-model-parallel-size",
            "--num-layers-per-virtual-pipeline-stage",
            "--num-layer-list",
        ),
        _uneven_groups,
        lambda args: (
            f"--recompute-num-layers {args.training.recompute_num_layers} does not divide the {_undivided_chunk(args)} "
            f"layers of a {'virtual ' if args.virtual_stages else ''}pipeline stage, which --recompute-method uniform "
            "needs"
        ),
    ),
)

_OPTIMIZER = (
    Rule[PretrainArguments](
        ("--bf16", "--fp16"),
        lambda args: args.training.bf16 and args.training.fp16,
        "--bf16 and --fp16: keep one of the flags",
    ),
    Rule[PretrainArguments](
        ("--overlap-param-gather", "--use-distributed-optimizer"),
        lambda args: args.parallel.overlap_param_gather and not args.parallel.use_distributed_optimizer,
        "--overlap-param-gather needs --use-distributed-optimizer; add it",
    ),
    Rule[PretrainArguments](
        ("--overlap-param-gather", "--overlap-grad-reduce"),
        lambda args: args.parallel.overlap_param_gather and not args.parallel.overlap_grad_reduce,
        "--overlap-param-gather needs --overlap-grad-reduce; add it",
    ),
    Rule[PretrainArguments](
        ("--calculate-per-token-loss", "--loss-normalization"),
        lambda args: args.training.calculate_per_token_loss and args.training.loss_normalization != "token",
        lambda args: (
            f"--calculate-per-token-loss means --loss-normalization token, not {args.training.loss_normalization}; "
            "keep one of the flags"
        ),
    ),
)


_GENERATION = (
    Rule[PretrainArguments](
        ("--generate-prompts", "--tokenizer-type"),
        lambda args: args.generation.generate_prompts is not None and args.tokenizer.tokenizer_type is None,
        "{--generate-prompts} needs a tokenizer: add --tokenizer-type PretrainedFromHF --tokenizer-name-or-path DIR",
    ),
    Rule[PretrainArguments](
        ("--generate-prompts", "--generate-tokens", "--seq-length"),
        lambda args: (
            args.generation.generate_prompts is not None and args.generation.generate_tokens >= args.data.seq_length
        ),
        "{--generate-tokens} leaves no room for a prompt in {--seq-length}; give fewer tokens",
    ),
)


RULES = (*_SCHEDULE, *_RECOMPUTE, *_OPTIMIZER, *_GENERATION)
