"""Rules of the length of a run, recomputation and the optimizer."""

from __future__ import annotations

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.rule import Rule

LENGTHS = ("--train-iters", "--train-samples", "--train-epochs")
RECOMPUTE = ("--recompute-granularity", "--recompute-activations")


def _given_lengths(arguments: PretrainArguments) -> list[str]:
    training = arguments.training
    values = (training.train_iters, training.train_samples, training.train_epochs)
    return [f"{flag} {value}" for flag, value in zip(LENGTHS, values, strict=True) if value is not None]


def _endless_warmup(arguments: PretrainArguments) -> bool:
    """The warm-up takes the whole decay."""
    training = arguments.training
    decay = training.lr_decay_iters or training.train_iters
    return decay is not None and training.lr_warmup_iters >= decay


_SCHEDULE = (
    Rule[PretrainArguments](
        LENGTHS,
        lambda args: not _given_lengths(args),
        "how long to train is not said: give --train-iters, --train-samples or --train-epochs",
    ),
    Rule[PretrainArguments](
        LENGTHS,
        lambda args: len(_given_lengths(args)) > 1,
        lambda args: f"{' and '.join(_given_lengths(args))}: how long to train is said more than once; keep one",
    ),
    Rule[PretrainArguments](
        ("--min-lr", "--lr"),
        lambda args: args.training.min_lr > args.training.lr,
        "{--min-lr} is above {--lr}",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-fraction", "--lr-warmup-iters"),
        lambda args: args.training.lr_warmup_fraction is not None and args.training.lr_warmup_iters,
        "{--lr-warmup-fraction} and {--lr-warmup-iters}: keep one",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-iters", "--train-samples"),
        lambda args: args.training.train_samples is not None and args.training.lr_warmup_iters,
        "--lr-warmup-iters does not go with --train-samples; use --lr-warmup-fraction, or --train-iters",
    ),
    Rule[PretrainArguments](
        ("--lr-decay-iters", "--lr-warmup-iters", "--train-samples"),
        lambda args: (
            args.training.train_samples is not None
            and args.training.lr_decay_iters is not None
            and not args.training.lr_warmup_iters
        ),
        "--lr-decay-iters does not go with --train-samples; use --lr-warmup-fraction, or --train-iters",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-iters", "--lr-decay-iters"),
        lambda args: args.training.lr_decay_iters and _endless_warmup(args),
        "{--lr-warmup-iters} is not less than {--lr-decay-iters}",
    ),
    Rule[PretrainArguments](
        ("--lr-warmup-iters", "--lr-decay-iters", "--train-iters"),
        lambda args: not args.training.lr_decay_iters and _endless_warmup(args),
        "{--lr-warmup-iters} is not less than {--train-iters}",
    ),
)


def _twice_recomputed(arguments: PretrainArguments) -> bool:
    return arguments.training.recompute_activations and arguments.training.recompute_granularity == "full"


def _recomputes_no_layers(arguments: PretrainArguments) -> bool:
    """The two flags that say how whole layers are computed again have no meaning."""
    return arguments.training.recompute != "full" and not _twice_recomputed(arguments)


def _layers(arguments: PretrainArguments) -> int:
    """Layers of a pipeline stage."""
    return arguments.model.num_layers // arguments.parallel.pipeline_model_parallel_size


def _chunk(arguments: PretrainArguments) -> int:
    """Layers that are run in one piece: those of a stage, or of a virtual stage."""
    return _layers(arguments) // (arguments.virtual_stages or 1)


def _too_many_recomputed(arguments: PretrainArguments) -> bool:
    return (arguments.training.recompute_num_layers or 0) > _layers(arguments) > 0


def _uneven_groups(arguments: PretrainArguments) -> bool:
    """megatron-core would reach for layers that are not there."""
    training = arguments.training
    if training.recompute_method != "uniform" or _too_many_recomputed(arguments):
        return False
    return _chunk(arguments) % (training.recompute_num_layers or 1) > 0


_RECOMPUTE = (
    Rule[PretrainArguments](
        RECOMPUTE,
        _twice_recomputed,
        "--recompute-activations means --recompute-granularity selective, not full; keep one",
    ),
    Rule[PretrainArguments](
        (*RECOMPUTE, "--recompute-method"),
        lambda args: args.training.recompute == "full" and args.training.recompute_method is None,
        "--recompute-granularity full needs --recompute-method, uniform or block",
    ),
    Rule[PretrainArguments](
        (*RECOMPUTE, "--recompute-num-layers"),
        lambda args: args.training.recompute == "full" and args.training.recompute_num_layers is None,
        "--recompute-granularity full needs --recompute-num-layers, for example 1",
    ),
    Rule[PretrainArguments](
        (*RECOMPUTE, "--recompute-method"),
        lambda args: _recomputes_no_layers(args) and args.training.recompute_method is not None,
        "{--recompute-method} goes with --recompute-granularity full alone",
    ),
    Rule[PretrainArguments](
        (*RECOMPUTE, "--recompute-num-layers"),
        lambda args: _recomputes_no_layers(args) and args.training.recompute_num_layers is not None,
        "{--recompute-num-layers} goes with --recompute-granularity full alone",
    ),
    Rule[PretrainArguments](
        ("--recompute-num-layers", "--num-layers", "--pipeline-model-parallel-size"),
        _too_many_recomputed,
        lambda args: (
            f"--recompute-num-layers {args.training.recompute_num_layers}: a pipeline stage has {_layers(args)} layers"
        ),
    ),
    Rule[PretrainArguments](
        (
            "--recompute-num-layers",
            "--recompute-method",
            "--num-layers",
            "--pipeline-model-parallel-size",
            "--num-layers-per-virtual-pipeline-stage",
        ),
        _uneven_groups,
        lambda args: (
            f"--recompute-num-layers {args.training.recompute_num_layers} does not divide the {_chunk(args)} layers "
            f"of a {'virtual ' if args.virtual_stages else ''}pipeline stage, as --recompute-method uniform needs"
        ),
    ),
)

_OPTIMIZER = (
    Rule[PretrainArguments](
        ("--bf16", "--fp16"),
        lambda args: args.training.bf16 and args.training.fp16,
        "--bf16 and --fp16: keep one",
    ),
    Rule[PretrainArguments](
        ("--overlap-param-gather", "--use-distributed-optimizer"),
        lambda args: args.parallel.overlap_param_gather and not args.parallel.use_distributed_optimizer,
        "--overlap-param-gather needs --use-distributed-optimizer",
    ),
    Rule[PretrainArguments](
        ("--overlap-param-gather", "--overlap-grad-reduce"),
        lambda args: args.parallel.overlap_param_gather and not args.parallel.overlap_grad_reduce,
        "--overlap-param-gather needs --overlap-grad-reduce",
    ),
    Rule[PretrainArguments](
        ("--calculate-per-token-loss", "--loss-normalization"),
        lambda args: args.training.calculate_per_token_loss and args.training.loss_normalization != "token",
        lambda args: (
            f"--calculate-per-token-loss means --loss-normalization token, not {args.training.loss_normalization}; "
            "keep one"
        ),
    ),
)

RULES = (*_SCHEDULE, *_RECOMPUTE, *_OPTIMIZER)
