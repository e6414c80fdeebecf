"""Collect notices about flags that have no effect on this device, or another effect than their name suggests."""

from __future__ import annotations

from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.devices import traits_of

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
    ignored: dict[str, list[str]] = {}
    for flag, why in (*ALWAYS.items(), *traits_of(device).ignored_flags.items()):
        if flag in arguments.given:
            ignored.setdefault(why, []).append(flag)
    lines += [
        f"{', '.join(flags)} ha{'s' if len(flags) == 1 else 've'} no effect: {why}" for why, flags in ignored.items()
    ]
    return [
        *lines,
        *_conditional_notices(arguments, device),
        *_recompute_and_rope_notices(arguments),
        *_raw_data_notices(arguments),
    ]


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
    if "--sequence-parallel" in given and parallel.tensor_model_parallel_size == 1:
        lines.append("--sequence-parallel has no effect: --tensor-model-parallel-size is 1")
    if parallel.ddp_bucket_size is not None and not parallel.overlap_grad_reduce:
        lines.append("--ddp-bucket-size has no effect without --overlap-grad-reduce: all gradients are one bucket")
    if model.transformer_impl != "local":
        lines.append(f"--transformer-impl {model.transformer_impl}: megatron-core's local layers are used")
    if "--initial-loss-scale" in given and not training.fp16:
        lines.append(
            f"--initial-loss-scale has no effect: the loss is scaled only with --fp16, not {training.precision}"
        )
    planning = [flag for flag in FOR_DRY_RUN if flag in given]
    if planning and not arguments.device.dry_run:
        lines.append(f"{', '.join(planning)} ha{'s' if len(planning) == 1 else 've'} no effect without --dry-run")
    if model.padded_vocab_size is not None and "--make-vocab-size-divisible-by" in given:
        lines.append("--make-vocab-size-divisible-by has no effect: --padded-vocab-size sets the size")
    if data.variable_seq_lengths and data.neat_pack:
        lines.append("--variable-seq-lengths has no effect on packs: each has --seq-length slots")
    if "--pad-to-multiple-of" in given and not data.variable_seq_lengths:
        lines.append("--pad-to-multiple-of has no effect without --variable-seq-lengths")
    if data.variable_seq_lengths and arguments.padding_multiple != data.pad_to_multiple_of:
        lines.append(
            f"--sequence-parallel: --variable-seq-lengths pads to a multiple of {arguments.padding_multiple}, because "
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} divides the sequence"
        )
    if _evaluates_nothing(arguments):
        lines.append(_evaluation_notice(arguments))
    if data.data_path and data.split is None:
        lines.append("--split is not given: Megatron's default 969,30,1 divides --data-path")
    if checkpoint.ckpt_format == "torch":
        lines.append("--ckpt-format torch: checkpoints are written as torch_dist, which loads on any layout")
    if checkpoint.load is None:
        ignored = [flag for flag in ("--finetune", "--no-load-optim", "--no-load-rng") if flag in given]
        if ignored:
            lines.append(f"{', '.join(ignored)} without --load: there is no checkpoint to start from")
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


def _recompute_and_rope_notices(arguments: PretrainArguments) -> list[str]:
    """Return the notices about recomputation and rope scaling."""
    lines = []
    if arguments.training.recomputes_no_complete_layer:
        lines.append(
            "--recompute-granularity full without --recompute-num-layers: no complete layer is recomputed, only "
            "activation functions"
        )
    if not arguments.model.use_rope_scaling:
        lines += [
            f"{flag} has no effect without --use-rope-scaling" for flag in ROPE_SCALING if flag in arguments.given
        ]
    return lines


def _raw_data_notices(arguments: PretrainArguments) -> list[str]:
    """Return the notices about the flags of raw data and about --enable-hf2mg-convert."""
    given, lines = arguments.given, []
    if arguments.raw_data.given:
        if "--no-shared-storage" in given:
            lines.append("--no-shared-storage: each machine preprocesses its own copy of raw data, into its own cache")
    else:
        if "--no-shared-storage" in given:
            lines.append(
                "--no-shared-storage has no effect: every rank computes the order of the data itself; only the packed "
                "files are shared"
            )
        unused = [flag.name for flag in declared_flags(RawDataArguments) if flag.name in given]
        if unused:
            lines.append(f"{', '.join(unused)} without --handler-name: no effect on packed files")
    if arguments.checkpoint.enable_hf2mg_convert:
        lines.append(
            "--enable-hf2mg-convert: the weights of --load are read directly; no converted checkpoint is written"
        )
    return lines
