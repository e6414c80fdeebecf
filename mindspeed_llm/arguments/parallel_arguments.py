"""Arguments for parallelism, and for the device and kernels of each rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_llm.arguments.bounds import RANKS, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE
from mindspeed_llm.devices import ACCELERATORS, BACKENDS, DEVICES
from mindspeed_llm.errors import ConfigError


@dataclass
class ParallelArguments:
    """Parallelism.

    The data-parallel size is world size / (tensor-parallel × pipeline-parallel × context-parallel size).
    """

    tensor_model_parallel_size: int = field(default=1, metadata=NOTICE | between(1, RANKS))
    """Number of ranks over which each layer is divided (TP)."""
    pipeline_model_parallel_size: int = field(default=1, metadata=NOTICE | between(1, RANKS))
    """Number of pipeline stages into which the layers are divided (PP)."""
    num_layers_per_virtual_pipeline_stage: int | None = field(default=None, metadata=NOTICE | between(1, 10_000))
    """Number of layers per virtual stage of an interleaved pipeline. Needs more than one pipeline stage."""
    num_layer_list: str | None = field(default=None, metadata=NOTICE | {"metavar": "N,N,..."})
    """Number of layers of each pipeline stage, such as 6,8,8,6, if they differ. Not for an interleaved pipeline."""
    context_parallel_size: int = field(default=1, metadata=NOTICE | between(1, RANKS))
    """Number of ranks over which each sequence is divided (CP). Above 1 is not supported yet."""
    sequence_parallel: bool = field(default=False, metadata=NOTICE)
    """Divide the activations between the tensor-parallel layers along the sequence. If the tensor-parallel size is 1,
    the flag has no effect and a notice is logged."""
    use_distributed_optimizer: bool = field(default=False, metadata=REFUSE)
    """Divide the optimizer state over the data-parallel ranks."""
    overlap_grad_reduce: bool = field(default=False, metadata=NOTICE)
    """Reduce gradients during the backward pass."""
    overlap_param_gather: bool = field(default=False, metadata=NOTICE)
    """Gather updated parameters during the forward pass. Needs --use-distributed-optimizer and
    --overlap-grad-reduce."""
    ddp_bucket_size: int | None = field(default=None, metadata=NOTICE | between(1, 2**40))
    """Number of parameters per gradient bucket, the unit of one reduction. Default: 40 million, or 1 million per
    data-parallel rank if that is larger. Has an effect only with --overlap-grad-reduce."""
    distributed_backend: str = field(default="nccl", metadata=FREE | {"choices": BACKENDS})
    """Collective library. The library of the device is always used: nccl on CUDA, hccl on Ascend, gloo on the CPU."""
    distributed_timeout_minutes: int = field(default=10, metadata=FREE | between(1, 525_600))
    """Timeout of collectives in minutes, at most one year. After it, a rank stops waiting for a lost rank."""

    @property
    def model_parallel_size(self) -> int:
        """Number of ranks that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def layers_of_stages(self) -> tuple[int, ...] | None:
        """Number of layers of each pipeline stage, from --num-layer-list; None without it.

        Raises:
            ConfigError: the value is not a list of whole numbers above 0.
        """
        if self.num_layer_list is None:
            return None
        numbers = self.num_layer_list.split(",")
        if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
            raise ConfigError(
                f"--num-layer-list {self.num_layer_list}: not whole numbers above 0, such as --num-layer-list 6,8,8,6"
            )
        return tuple(map(int, numbers))

    def data_parallel_size(self, world_size: int) -> int:
        """Return the number of copies of the model.

        Args:
            world_size: number of ranks of the job.
        """
        return world_size // self.model_parallel_size

    def virtual_stages(self, num_layers: int) -> int | None:
        """Return the number of virtual stages per pipeline rank; None if the pipeline is not interleaved.

        Args:
            num_layers: number of layers of the complete model.
        """
        if self.num_layers_per_virtual_pipeline_stage is None:
            return None
        layers_per_rank = num_layers // self.pipeline_model_parallel_size
        stages = layers_per_rank // self.num_layers_per_virtual_pipeline_stage
        return stages if stages > 1 else None


@dataclass
class DeviceArguments:
    """Device and kernels."""

    device: str = field(default="auto", metadata=NOTICE | {"choices": ("auto", *DEVICES)})
    """Device to train on. auto uses an accelerator if one is available."""
    dry_run: bool = field(default=False, metadata=FREE)
    """Build the complete job without allocating its memory, print layout, parameters, memory and steps, and exit."""
    check_only: bool = field(default=False, metadata=FREE)
    """Check the command in one process, without importing torch, and exit: with status 0, or 2 and the messages that
    the run would end with. The number of ranks is WORLD_SIZE in the environment."""
    dry_run_trained_share: float | None = field(default=None, metadata=FREE | between(0, 1))
    """Trained tokens ÷ tokens, for the memory estimate of --dry-run. Default: from the manifest, without one 1."""
    device_type: str | None = field(default=None, metadata=FREE | {"choices": tuple(ACCELERATORS)})
    """With --dry-run: compare the memory of each rank with that of this accelerator, and name what to change if the job
    does not fit. A100, H100 and H200 are the SXM devices, the A100 with 80 GB; 910B has 64 GB."""
    mfu: float | None = field(default=None, metadata=FREE | {"above": 0, "maximum": 1})
    """With --dry-run and --device-type: estimate the time for this model FLOPS utilization, a fraction such as 0.4: the
    operations of the model, without recomputation, ÷ the peak of the devices in 16-bit precision."""
    use_mindspeed: bool = field(default=False, metadata=NOTICE)
    """On an NPU, let an installed MindSpeed (branch core_r0.16.0) patch megatron-core first. Not required."""
    deterministic_mode: bool = field(default=False, metadata=NOTICE | {"flags": ("--npu-deterministic",)})
    """Use deterministic algorithms, so that repeated runs give identical results. Training is slower."""
    use_flash_attn: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: fused attention of the accelerator is always used."""
    use_fused_rmsnorm: bool = field(default=False, metadata=NOTICE)
    """Use the fused RMSNorm kernel of the accelerator."""
    use_fused_swiglu: bool = field(default=False, metadata=NOTICE)
    """Use the fused SwiGLU kernel of the accelerator."""
    use_fused_rotary_pos_emb: bool = field(default=False, metadata=NOTICE)
    """Use the fused rotary embedding kernel of the accelerator."""
    no_gradient_accumulation_fusion: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: weight gradients are always accumulated without a fused kernel."""
    no_masked_softmax_fusion: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: no fused masked softmax is used."""
    reuse_fp32_param: bool = field(default=False, metadata=FREE)
    """Accepted for compatibility: MindSpeed's shared memory of bfloat16 and float32 weights is not used."""
