"""Collect notices about flags that have no effect on this device, or another effect than their name suggests."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.devices import bf16_slowdown, cpu_flags, traits_of

_NO_OVERLAP = "matrix products and tensor-parallel communication run one after the other"

_LORA = "an adapter is always added to the output of its layer, and its checkpoints never contain the base model"

# Flags without effect on any device: flag → reason. docs/flags-without-effect.md lists them.
ALWAYS = {
    "--use-mcore-models": "models are always those of megatron-core",
    "--no-gradient-accumulation-fusion": "weight gradients are always accumulated without a fused kernel",
    "--no-masked-softmax-fusion": "attention uses no separate masked softmax",
    "--attention-softmax-in-fp32": "the attention softmax is always computed in float32",
    "--reuse-fp32-param": "bfloat16 weights always have separate main (float32) weights",
    "--num-workers": "each rank reads its packs from the files; no worker processes are started",
    "--dataloader-type": "the seed, the epoch and --no-shuffle determine the order",
    "--trust-remote-code": "code of a tokenizer is never executed",
    "--full-shuffle-instruction-dataset": "every epoch has a new order unless --no-shuffle is given",
    "--log-throughput": "every log line contains the throughput",
    "--exit-on-missing-checkpoint": "a --load without a checkpoint is always an error",
    "--no-check-for-nan-in-loss-and-grad": (
        "loss and gradients are always checked; --skip-bad-steps N leaves out up to N steps that are not finite"
    ),
    "--swap-attention": (
        "activations stay in the memory of the device; --recompute-granularity and --recompute-activation-function "
        "save memory"
    ),
    "--use-ascend-mc2": _NO_OVERLAP,
    "--use-ascend-coc": _NO_OVERLAP,
    "--coc-mode": _NO_OVERLAP,
    "--coc-parallel-num": _NO_OVERLAP,
    "--coc-fused-kernel": _NO_OVERLAP,
    "--lora-fusion": _LORA,
    "--lora-ckpt-filter": _LORA,
    "--lora-register-forward-hook": "the input of recomputed layers always requires a gradient",
    "--use-cp-send-recv-overlap": "each sequence is on one rank; context parallelism is not supported yet",
}

# Flags whose value is used only with rope scaling.
ROPE_SCALING = (
    "--rope-scaling-factor",
    "--low-freq-factor",
    "--high-freq-factor",
    "--original-max-position-embeddings",
)

# Flags of --load.
FOR_LOAD = ("--finetune", "--no-load-optim", "--no-load-rng")

# Flags of --dry-run.
FOR_DRY_RUN = ("--dry-run-trained-share", "--device-type", "--mfu")


def collect_notices(arguments: PretrainArguments, device: str) -> list[str]:
    """Return the notices for a command line, one line each.

    They name flags that have no effect or another effect than expected, and the flags that are taken from the
    checkpoint of --load.

    Args:
        arguments: arguments of the command line.
        device: device of this run: 'cpu', 'cuda' or 'npu'.
    """
    lines = [arguments.shape_notice] if arguments.shape_notice else []
    if (line := _without_effect(arguments, device)) is not None:
        lines.append(line)
    return [
        *lines,
        *_conditional_notices(arguments, device),
        *_raw_data_notices(arguments),
    ]


def _without_effect(arguments: PretrainArguments, device: str) -> str | None:
    """Return one line that names all flags without effect; None if there are none."""
    given = arguments.given
    parts = []
    fixed = {**ALWAYS, **traits_of(device).ignored_flags}
    if flags := [flag for flag in fixed if flag in given]:
        reasons = list(dict.fromkeys(fixed[flag] for flag in flags))
        # A script of MindSpeed-LLM has ten such flags, whose reasons would hide the other lines of the start.
        reason = reasons[0] if len(reasons) == 1 else "reasons: docs/flags-without-effect.md"
        parts.append(f"{', '.join(flags)} ({reason})")
    for reason, names in _ignored_in_this_command(arguments):
        if ignored := [flag for flag in names if flag in given]:
            parts.append(f"{', '.join(ignored)} ({reason})")
    return f"no effect: {'; '.join(parts)}" if parts else None


def _ignored_in_this_command(arguments: PretrainArguments) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (reason, flags) for the flags that other flags make ineffective, whether they are given or not."""
    model, parallel, training, data = arguments.model, arguments.parallel, arguments.training, arguments.data
    if parallel.tensor_model_parallel_size == 1:
        yield "--tensor-model-parallel-size is 1", ("--sequence-parallel",)
    if not parallel.overlap_grad_reduce:
        yield "without --overlap-grad-reduce all gradients are one bucket", ("--ddp-bucket-size",)
    if not training.fp16:
        yield f"the loss is scaled only with --fp16, not {training.precision}", ("--initial-loss-scale",)
    if not arguments.device.dry_run:
        yield "without --dry-run", FOR_DRY_RUN
    if model.padded_vocab_size is not None:
        yield "--padded-vocab-size sets the size", ("--make-vocab-size-divisible-by",)
    if data.neat_pack:
        yield "each pack has --seq-length slots", ("--variable-seq-lengths",)
    if not data.variable_seq_lengths:
        yield "without --variable-seq-lengths", ("--pad-to-multiple-of",)
    if not model.use_rope_scaling:
        yield "without --use-rope-scaling", ROPE_SCALING
    if arguments.checkpoint.load is None:
        yield "without --load there is no checkpoint to start from", FOR_LOAD
    if not arguments.raw_data.given:
        reason = "every rank computes the order of the data itself; only the packed files are shared"
        yield reason, ("--no-shared-storage",)
        yield "without --handler-name", tuple(flag.name for flag in declared_flags(RawDataArguments))


def _conditional_notices(arguments: PretrainArguments, device: str) -> list[str]:
    """Return the notices that depend on the values of several flags, or on the device."""
    model, parallel, training = arguments.model, arguments.parallel, arguments.training
    data, checkpoint, given = arguments.data, arguments.checkpoint, arguments.given
    lines = []
    backend = traits_of(device).backend
    if "--distributed-backend" in given and parallel.distributed_backend != backend:
        lines.append(
            f"--distributed-backend {parallel.distributed_backend} means the device's own library: "
            f"{backend} on {device}"
        )
    if training.bf16 and traits_of(device).is_host and (slowdown := bf16_slowdown(cpu_flags())) is not None:
        lines.append(
            f"--bf16: this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16), so that a step takes "
            f"{slowdown} as long as in float32; leave the flag out on this CPU"
        )
    if model.transformer_impl != "local":
        lines.append(f"--transformer-impl {model.transformer_impl}: megatron-core's local layers are used")
    if data.variable_seq_lengths and arguments.padding_multiple != data.pad_to_multiple_of:
        lines.append(
            f"--sequence-parallel: --variable-seq-lengths pads to a multiple of {arguments.padding_multiple}, because "
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} divides the sequence"
        )
    if _evaluates_nothing(arguments):
        lines.append(_evaluation_notice(arguments))
    if checkpoint.ckpt_format == "torch":
        lines.append("--ckpt-format torch: checkpoints are written as torch_dist, which loads on any layout")
    if training.recomputes_no_complete_layer:
        lines.append(
            "--recompute-granularity full without --recompute-num-layers: no complete layer is recomputed, only "
            "activation functions"
        )
    return lines


def _evaluates_nothing(arguments: PretrainArguments) -> bool:
    """Return whether the command asks for evaluation without validation data."""
    training, data = arguments.training, arguments.data
    # --eval-iters is above 0 by default, which is no request.
    is_requested = training.eval_interval is not None or "--eval-iters" in arguments.given
    if not is_requested or training.eval_iters == 0 or not (data.data_path or data.per_split_paths):
        return False
    return not data.has_validation


def _evaluation_notice(arguments: PretrainArguments) -> str:
    data = arguments.data
    reason = (
        "--valid-data-path is not given"
        if data.per_split_paths
        else f"--split {data.split} gives validation no share; for example --split 95,5,0 does"
    )
    return f"--eval-iters {arguments.training.eval_iters}: nothing is evaluated, because {reason}"


def _raw_data_notices(arguments: PretrainArguments) -> list[str]:
    """Return the notices about raw data and about --enable-hf2mg-convert."""
    lines = []
    if arguments.raw_data.given and "--no-shared-storage" in arguments.given:
        lines.append("--no-shared-storage: each machine preprocesses its own copy of raw data, into its own cache")
    if arguments.checkpoint.enable_hf2mg_convert:
        lines.append(
            "--enable-hf2mg-convert: the weights of --load are read directly; no converted checkpoint is written"
        )
    return lines
