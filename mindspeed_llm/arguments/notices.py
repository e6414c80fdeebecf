"""Collect notices about flags that have no effect on this device, or another effect than their name suggests."""

from __future__ import annotations

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import traits_of

# Flags without effect on any device: flag → reason.
ALWAYS = {
    "--use-mcore-models": "models are always those of megatron-core",
    "--no-gradient-accumulation-fusion": "weight gradients are always accumulated without a fused kernel",
    "--no-masked-softmax-fusion": "attention uses no separate masked softmax",
    "--attention-softmax-in-fp32": "the attention softmax is always computed in float32",
    "--reuse-fp32-param": "bfloat16 weights always have separate main (float32) weights",
    "--num-workers": "each rank reads its packs from the files; no worker processes are started",
    "--dataloader-type": "the seed, the epoch and --no-shuffle determine the order",
    "--no-shared-storage": "every rank computes the order of the data itself; only the packed files are shared",
    "--trust-remote-code": "code of a tokenizer is never executed",
    "--full-shuffle-instruction-dataset": "every epoch has a new order unless --no-shuffle is given",
    "--log-throughput": "every log line contains the throughput",
    "--exit-on-missing-checkpoint": "a --load without a checkpoint is always an error",
}


def collect_notices(arguments: PretrainArguments, device: str) -> list[str]:
    """Return the notices for a command line, one line each.

    They name flags that have no effect or another effect than expected, and the flags that are taken from the
    checkpoint of --load.

    Args:
        arguments: arguments of the command line.
        device: device of this run: 'cpu', 'cuda' or 'npu'.
    """
    lines = [arguments.shape_notice] if arguments.shape_notice else []
    ignored = [*ALWAYS.items(), *traits_of(device).ignored_flags.items()]
    lines += [f"{flag} has no effect: {why}" for flag, why in ignored if flag in arguments.given]
    return lines + _conditional_notices(arguments, device)


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
    if "--dry-run-trained-share" in given and not arguments.device.dry_run:
        lines.append("--dry-run-trained-share has no effect without --dry-run")
    if "--rope-scaling-factor" in given and not model.use_rope_scaling:
        lines.append("--rope-scaling-factor has no effect without --use-rope-scaling")
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
    if data.data_path and data.split is None:
        lines.append("--split is not given: Megatron's default 969,30,1 divides --data-path")
    if checkpoint.ckpt_format == "torch":
        lines.append("--ckpt-format torch: checkpoints are written as torch_dist, which loads on any layout")
    if checkpoint.load is None:
        ignored = [flag for flag in ("--finetune", "--no-load-optim", "--no-load-rng") if flag in given]
        if ignored:
            lines.append(f"{', '.join(ignored)} without --load: there is no checkpoint to start from")
    return lines
