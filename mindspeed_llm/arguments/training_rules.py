"""Rules of the length of a run, recomputation and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.arguments.pretrain import PretrainArguments


def _schedule(arguments: PretrainArguments) -> Iterator[str]:
    training = arguments.training
    lengths = [("iters", training.train_iters), ("samples", training.train_samples), ("epochs", training.train_epochs)]
    given = [f"--train-{unit} {value}" for unit, value in lengths if value is not None]
    if not given:
        yield "how long to train is not said: give --train-iters, --train-samples or --train-epochs"
    if len(given) > 1:
        yield f"{' and '.join(given)}: how long to train is said more than once; keep one"
    if training.min_lr > training.lr:
        yield f"--min-lr {training.min_lr:g} is above --lr {training.lr:g}"
    if training.lr_warmup_fraction is not None and training.lr_warmup_iters:
        yield (
            f"--lr-warmup-fraction {training.lr_warmup_fraction:g} and --lr-warmup-iters {training.lr_warmup_iters}: "
            "keep one"
        )
    if training.train_samples is not None and (training.lr_warmup_iters or training.lr_decay_iters is not None):
        flag = "--lr-warmup-iters" if training.lr_warmup_iters else "--lr-decay-iters"
        yield f"{flag} does not go with --train-samples; use --lr-warmup-fraction, or --train-iters"
    decay = training.lr_decay_iters or training.train_iters
    if decay is not None and training.lr_warmup_iters >= decay:
        flag = "--lr-decay-iters" if training.lr_decay_iters else "--train-iters"
        yield f"--lr-warmup-iters {training.lr_warmup_iters} is not less than {flag} {decay}"


def _recompute(arguments: PretrainArguments) -> Iterator[str]:
    training, parallel = arguments.training, arguments.parallel
    if training.recompute_activations and training.recompute_granularity == "full":
        yield "--recompute-activations means --recompute-granularity selective, not full; keep one"
    elif training.recompute == "full":
        if training.recompute_method is None:
            yield "--recompute-granularity full needs --recompute-method, uniform or block"
        if training.recompute_num_layers is None:
            yield "--recompute-granularity full needs --recompute-num-layers, for example 1"
    else:
        for flag, value in (
            ("--recompute-method", training.recompute_method),
            ("--recompute-num-layers", training.recompute_num_layers),
        ):
            if value is not None:
                yield f"{flag} {value} goes with --recompute-granularity full alone"
    layers = arguments.model.num_layers // parallel.pipeline_model_parallel_size
    if training.recompute_num_layers is not None and training.recompute_num_layers > layers > 0:
        yield f"--recompute-num-layers {training.recompute_num_layers}: a pipeline stage has {layers} layers"
        return
    chunk = layers // (arguments.virtual_stages or 1)
    if training.recompute_method == "uniform" and chunk % (training.recompute_num_layers or 1):
        # megatron-core would reach for layers that are not there.
        yield (
            f"--recompute-num-layers {training.recompute_num_layers} does not divide the {chunk} layers of a "
            f"{'virtual ' if arguments.virtual_stages else ''}pipeline stage, as --recompute-method uniform needs"
        )


def _optimizer(arguments: PretrainArguments) -> Iterator[str]:
    training, parallel = arguments.training, arguments.parallel
    if training.bf16 and training.fp16:
        yield "--bf16 and --fp16: keep one"
    if parallel.overlap_param_gather and not parallel.use_distributed_optimizer:
        yield "--overlap-param-gather needs --use-distributed-optimizer"
    if parallel.overlap_param_gather and not parallel.overlap_grad_reduce:
        yield "--overlap-param-gather needs --overlap-grad-reduce"
    if training.calculate_per_token_loss and training.loss_normalization != "token":
        yield (
            f"--calculate-per-token-loss means --loss-normalization token, not {training.loss_normalization}; keep one"
        )


RULES = (_schedule, _recompute, _optimizer)
