"""How the job is spread over ranks, and the device that each rank uses."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_llm.arguments.bounds import RANKS, between
from mindspeed_llm.arguments.resume_policy import FREE, NOTICE, REFUSE
from mindspeed_llm.devices import BACKENDS, DEVICES


@dataclass
class ParallelArguments:
    """Parallelism.

    Data parallelism takes what the others leave: world size / (tensor x pipeline x context).
    """

    tensor_model_parallel_size: int = field(default=1, metadata=NOTICE | between(1, RANKS))
    """Ranks that share each layer (TP)."""
    pipeline_model_parallel_size: int = field(default=1, metadata=NOTICE | between(1, RANKS))
    """Stages that the layers are divided into (PP)."""
    num_layers_per_virtual_pipeline_stage: int | None = field(default=None, metadata=NOTICE | between(1, 10_000))
    """Interleaved pipeline: layers of one virtual stage. Needs more than one pipeline stage."""
    context_parallel_size: int = field(default=1, metadata=NOTICE | between(1, RANKS))
    """Ranks that share each sequence (CP). Above 1 is not built yet."""
    sequence_parallel: bool = field(default=False, metadata=NOTICE)
    """Divide the activations between the tensor-parallel layers along the sequence. Without effect, and said to be so,
    when the tensor-parallel size is 1."""
    use_distributed_optimizer: bool = field(default=False, metadata=REFUSE)
    """Divide the optimizer state among the data-parallel ranks."""
    overlap_grad_reduce: bool = field(default=False, metadata=NOTICE)
    """Reduce gradients while the backward pass runs."""
    overlap_param_gather: bool = field(default=False, metadata=NOTICE)
    """Gather updated parameters while the forward pass runs. Needs --use-distributed-optimizer and
    --overlap-grad-reduce."""
    ddp_bucket_size: int | None = field(default=None, metadata=NOTICE | between(1, 2**40))
    """Parameters of one bucket, the part of the gradient that is reduced at a time; by default 40 million, or 1 million
    for each data-parallel rank if that is more. Has an effect with --overlap-grad-reduce only."""
    distributed_backend: str = field(default="nccl", metadata=FREE | {"choices": BACKENDS})
    """Collective library. nccl and hccl mean the one of the device: nccl on CUDA, hccl on Ascend, gloo on the CPU."""
    distributed_timeout_minutes: int = field(default=10, metadata=FREE | between(1, 525_600))
    """Minutes, at most a year, after which a collective that waits for a lost rank gives up."""

    @property
    def model_parallel_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Copies of the model among `world_size` ranks."""
        return world_size // self.model_parallel_size

    def virtual_stages(self, num_layers: int) -> int | None:
        """Virtual stages of each pipeline rank, None when the pipeline is not interleaved."""
        if self.num_layers_per_virtual_pipeline_stage is None:
            return None
        layers_per_rank = num_layers // self.pipeline_model_parallel_size
        stages = layers_per_rank // self.num_layers_per_virtual_pipeline_stage
        return stages if stages > 1 else None


@dataclass
class DeviceArguments:
    """Device and kernels."""

    device: str = field(default="auto", metadata=NOTICE | {"choices": ("auto", *DEVICES)})
    """Where to compute; auto takes an accelerator if there is one."""
    dry_run: bool = field(default=False, metadata=FREE)
    """Build the whole job without memory for it, print the layout, parameters, memory and steps, and end."""
    use_mindspeed: bool = field(default=False, metadata=NOTICE)
    """On an NPU, let an installed MindSpeed (branch core_r0.16.0) patch megatron-core first. Nothing needs it."""
    deterministic_mode: bool = field(default=False, metadata=NOTICE | {"flags": ("--npu-deterministic",)})
    """The same numbers in every run of a command, at some cost in speed."""
    use_flash_attn: bool = field(default=False, metadata=FREE)
    """The accelerator's fused attention: used with and without this flag."""
    use_fused_rmsnorm: bool = field(default=False, metadata=NOTICE)
    """The accelerator's fused RMSNorm."""
    use_fused_swiglu: bool = field(default=False, metadata=NOTICE)
    """The accelerator's fused SwiGLU."""
    use_fused_rotary_pos_emb: bool = field(default=False, metadata=NOTICE)
    """The accelerator's fused rotary embedding."""
    no_gradient_accumulation_fusion: bool = field(default=False, metadata=FREE)
    """No fused kernel that adds weight gradients in place: always so here."""
    no_masked_softmax_fusion: bool = field(default=False, metadata=FREE)
    """No fused masked softmax: always so here."""
    reuse_fp32_param: bool = field(default=False, metadata=FREE)
    """MindSpeed's sharing of memory between bfloat16 weights and their float32 copies: not used here."""
