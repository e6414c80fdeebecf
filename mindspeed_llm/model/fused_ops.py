"""Which of a layer's small operators are the device's fused ones: the flags, and torch_npu's operators behind them.

Each is a seam of megatron-core: a class in the ModuleSpec, a field of TransformerConfig, or our own rotary embedding
and core_attention. Nothing is patched.

    --use-fused-rmsnorm            npu_rms_norm      the norms of the ModuleSpec
    --use-fused-swiglu             npu_swiglu        MLPSubmodules.activation_func
    --use-fused-rotary-pos-emb     npu_rotary_mul    cosines once per micro-batch, applied in core_attention

On the CPU SwiGLU is `SwiGLU`: the same numbers as megatron-core's chunk, silu and product, bit for bit, with half the
memory traffic. AdamW is torch._fused_adamw_ on every device (devices/optim.py); torch_npu has a kernel for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.parallel_arguments import DeviceArguments
from mindspeed_llm.model.rms_norm import RMSNorm
from mindspeed_llm.model.rotary_embedding import PackedRotaryEmbedding


class NpuRMSNorm(RMSNorm):
    """RMSNorm as one operator, torch_npu.npu_rms_norm; the weight has the type of the activations."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden size] → the same shape and type."""
        import torch_npu

        normed: torch.Tensor = torch_npu.npu_rms_norm(hidden, self.weight, epsilon=self.eps)[0]
        return normed


class SwiGLU:
    """silu(first half) · second half of the last dimension (Shazeer, 2020).

    Written out, as megatron-core does it, autograd keeps silu(gate) and the other half beside the input, makes three
    more tensors of that size in the backward pass and joins two of them. Here the input alone is kept, and gradients
    are written where they belong. Without it a training step on the CPU takes 1.06 times the processor time (4 layers,
    hidden size 256, 4,096 slots; median of 20 pairs).

    Not a torch.nn.Module: it has no state, and megatron-core would look for it in checkpoints.
    """

    def __init__(self, config: TransformerConfig) -> None:
        assert config.gated_linear_unit and config.activation_func is torch.nn.functional.silu
        assert config.activation_func_clamp_value is None and config.glu_linear_offset == 0.0

    def __call__(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """[..., 2 · width] → [..., width]."""
        output: torch.Tensor = _SwiGLUFunction.apply(gate_and_up)
        return output


class _SwiGLUFunction(torch.autograd.Function):
    """The same operations on the same elements as autograd's, so that no bit differs."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_and_up)
        gate, up = gate_and_up.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (gate_and_up,) = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_up)
        of_gate, of_up = result.chunk(2, dim=-1)
        torch.mul(gradient, torch.nn.functional.silu(gate), out=of_up)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        return result


class NpuSwiGLU(SwiGLU):
    """SwiGLU as one operator, torch_npu.npu_swiglu."""

    def __call__(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """[..., 2 · width] → [..., width]."""
        import torch_npu

        output: torch.Tensor = torch_npu.npu_swiglu(gate_and_up, dim=-1)
        return output


class NpuRotaryEmbedding(PackedRotaryEmbedding):
    """Cosine and sine of every token, which core_attention applies to query and key.

    megatron-core is given no rotary embedding, so it rotates nothing itself. The cosines are computed once for a
    micro-batch and not once for each layer.

    Args:
        dtype: type of the activations: the operator wants cosine and sine in it.
        others: as in PackedRotaryEmbedding.
    """

    def __init__(self, dtype: torch.dtype, **others: Any) -> None:
        super().__init__(**others)
        self.dtype = dtype

    def cosine_and_sine(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[T] int64 → (cosine, sine), each [T, 1, 1, rotary size]."""
        angles = self(positions)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def apply_rotary(heads: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate query or key by torch_npu.npu_rotary_mul, in its layout SBND with a batch of 1.

    Args:
        heads: [T, 1, heads, head size]; with --rotary-percent below 1 only the first part of a head is rotated.
        rotary: cosine and sine, [T, 1, 1, rotary size].
    """
    import torch_npu

    cosine, sine = rotary
    size = cosine.shape[-1]
    if size == heads.shape[-1]:
        rotated: torch.Tensor = torch_npu.npu_rotary_mul(heads, cosine, sine, "half")
        return rotated
    turned = torch_npu.npu_rotary_mul(heads[..., :size].contiguous(), cosine, sine, "half")
    return torch.cat((turned, heads[..., size:]), dim=-1)


@dataclass(frozen=True)
class FusedOps:
    """What a layer is built of on a device.

    Attributes:
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        norm: class of every norm.
        activation: megatron-core's activation_func of an MLP, None for megatron-core's own.
        rotary: whether rotation is torch_npu's operator.
        bias_swiglu: whether megatron-core's fused SwiGLU is used (TransformerConfig.bias_activation_fusion).
        bias_dropout: whether megatron-core's fused bias and dropout is used (TransformerConfig.bias_dropout_fusion).
        torch_fuses_norm: whether torch's RMSNorm is one kernel: on CUDA from torch 2.9 on.
        left_out: flags of fused operators that this device has and the command does not ask for.
    """

    device: str
    norm: type[RMSNorm] = RMSNorm
    activation: type[SwiGLU] | None = None
    rotary: bool = False
    bias_swiglu: bool = False
    bias_dropout: bool = False
    torch_fuses_norm: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def fuses_norm(self) -> bool:
        """Whether the norm is one operator that keeps its input alone."""
        return self.norm is not RMSNorm or self.torch_fuses_norm

    @property
    def fuses_swiglu(self) -> bool:
        """Whether SwiGLU is one function that keeps its input alone."""
        return self.activation is not None or self.bias_swiglu

    @property
    def names(self) -> list[str]:
        """The fused operators in use, the optimizer's last."""
        fused = {
            "npu_rms_norm": self.norm is NpuRMSNorm,
            "npu_swiglu": self.activation is NpuSwiGLU,
            "npu_rotary_mul": self.rotary,
            "megatron-core's bias_swiglu": self.bias_swiglu,
            "torch._fused_adamw_": True,
        }
        return [name for name, used in fused.items() if used]

    def __str__(self) -> str:
        """For the line that a run prints at its start."""
        without = f"; not asked for: {', '.join(self.left_out)}" if self.left_out else ""
        return f"fused: {', '.join(self.names)}{without}"


def select_fused_ops(flags: DeviceArguments, model: ModelArguments, device: str) -> FusedOps:
    """The flags' operators on an NPU, `SwiGLU` on the CPU, megatron-core's and torch's otherwise."""
    if device == "cpu":
        return FusedOps(device, activation=SwiGLU if model.swiglu else None)
    if device == "cuda":
        bias_swiglu = flags.use_fused_swiglu and model.swiglu
        return FusedOps(device, bias_swiglu=bias_swiglu, bias_dropout=True, torch_fuses_norm=True)
    if device != "npu":
        return FusedOps(device)
    asked = {
        "--use-fused-rmsnorm": flags.use_fused_rmsnorm,
        "--use-fused-swiglu": flags.use_fused_swiglu or not model.swiglu,
        "--use-fused-rotary-pos-emb": flags.use_fused_rotary_pos_emb,
    }
    return FusedOps(
        device,
        norm=NpuRMSNorm if flags.use_fused_rmsnorm else RMSNorm,
        activation=NpuSwiGLU if flags.use_fused_swiglu and model.swiglu else None,
        rotary=flags.use_fused_rotary_pos_emb,
        left_out=tuple(flag for flag, given in asked.items() if not given),
    )
