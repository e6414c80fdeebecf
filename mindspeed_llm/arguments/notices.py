"""One line for each flag that was given and changes nothing, or not what its name says, on this device."""

from __future__ import annotations

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import traits_of

# Flags that change nothing on any device: flag → what happens in any case.
ALWAYS = {
    "--use-mcore-models": "the models are megatron-core's in any case",
    "--no-gradient-accumulation-fusion": "weight gradients are added without a fused kernel in any case",
    "--no-masked-softmax-fusion": "attention has no masked softmax of its own to fuse",
    "--attention-softmax-in-fp32": "the softmax of attention is in float32 in any case",
    "--reuse-fp32-param": "bfloat16 weights keep float32 copies of their own",
    "--num-workers": "each rank reads its own packs from the files; no worker processes are started",
    "--dataloader-type": "the seed, the epoch and --no-shuffle decide the order",
    "--no-shared-storage": "every rank works out the order of the data itself; nothing is shared but the packed files",
    "--trust-remote-code": "no tokenizer's code is run",
    "--full-shuffle-instruction-dataset": "every epoch has a new order in any case",
    "--log-throughput": "throughput is in every line in any case",
    "--exit-on-missing-checkpoint": "a --load without a checkpoint ends the run in any case",
}


def collect_notices(arguments: PretrainArguments, device: str) -> list[str]:
    """One line for each given flag without effect, and one for what comes from the checkpoint of --load.

    Args:
        device: 'cpu', 'cuda' or 'npu', as chosen for this run.
    """
    lines = [arguments.shape_notice] if arguments.shape_notice else []
    ignored = [*ALWAYS.items(), *traits_of(device).ignored_flags.items()]
    lines += [f"{flag} has no effect: {why}" for flag, why in ignored if flag in arguments.given]
    return lines + _unlike_the_name(arguments, device)


def _unlike_the_name(arguments: PretrainArguments, device: str) -> list[str]:
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
        lines.append("--ddp-bucket-size has no effect without --overlap-grad-reduce: the gradient is one bucket")
    if model.transformer_impl != "local":
        lines.append(f"--transformer-impl {model.transformer_impl}: the layers are megatron-core's local ones")
    if "--initial-loss-scale" in given and not training.fp16:
        lines.append(
            f"--initial-loss-scale has no effect: losses are scaled with --fp16 alone, not {training.precision}"
        )
    if "--rope-scaling-factor" in given and not model.use_rope_scaling:
        lines.append("--rope-scaling-factor has no effect without --use-rope-scaling")
    if model.padded_vocab_size is not None and "--make-vocab-size-divisible-by" in given:
        lines.append("--make-vocab-size-divisible-by has no effect: --padded-vocab-size decides")
    if data.variable_seq_lengths and data.neat_pack:
        lines.append("--variable-seq-lengths has no effect on packs: all have --seq-length slots")
    if "--pad-to-multiple-of" in given and not data.variable_seq_lengths:
        lines.append("--pad-to-multiple-of has no effect without --variable-seq-lengths")
    if data.variable_seq_lengths and arguments.padding_multiple != data.pad_to_multiple_of:
        lines.append(
            f"--sequence-parallel: --variable-seq-lengths pads to a multiple of {arguments.padding_multiple}, because "
            f"--tensor-model-parallel-size {parallel.tensor_model_parallel_size} divides the sequence"
        )
    if data.data_path and data.split is None:
        lines.append("--split is not given: Megatron's 969,30,1 divides --data-path")
    if checkpoint.ckpt_format == "torch":
        lines.append("--ckpt-format torch: checkpoints are written as torch_dist, which loads on any layout")
    if checkpoint.load is None:
        ignored = [flag for flag in ("--finetune", "--no-load-optim", "--no-load-rng") if flag in given]
        if ignored:
            lines.append(f"{', '.join(ignored)} without --load: there is no checkpoint to start from")
    return lines
