"""Select the fused operators of a layer for a device, and implement them with torch_npu's operators.

Each operator uses an extension point of megatron-core: a class in the ModuleSpec, a field of TransformerConfig, or our
rotary embedding and core_attention. No code is patched.

    flag                           operator          where
    --use-fused-rmsnorm            npu_rms_norm      norms of the ModuleSpec
    --use-fused-swiglu             npu_swiglu        MLPSubmodules.activation_func
    --use-fused-rotary-pos-emb     npu_rotary_mul    core_attention, with cosine and sine computed once per micro-batch

On the CPU the activation is `SwiGLU`, which gives bitwise the same results as megatron-core's chunk, silu and product
with half the memory traffic. AdamW is torch._fused_adamw_ on every device (devices/optim.py); torch_npu has a kernel
for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.parallel_arguments import DeviceArguments
from mindspeed_llm.model.layer_norm import LayerNorm
from mindspeed_llm.model.rms_norm import RMSNorm
from mindspeed_llm.model.rotary_embedding import PackedRotaryEmbedding


class NpuRMSNorm(RMSNorm):
    """RMSNorm with the fused operator torch_npu.npu_rms_norm; the weight has the dtype of the activations."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalize `hidden`, [..., hidden size]; shape and dtype remain."""
        import torch_npu

        normed: torch.Tensor = torch_npu.npu_rms_norm(hidden, self.weight, epsilon=self.eps)[0]
        return normed


class SwiGLU:
    """SwiGLU activation: silu(first half) · second half of the last dimension (Shazeer, 2020).

    With megatron-core's separate operations, autograd saves silu(gate) and the second half in addition to the input,
    creates three more tensors of that size in the backward pass and concatenates two of them. This function saves only
    the input and writes the gradients to their final position. Without it, a training step on the CPU takes 1.06 times
    the CPU time (4 layers, hidden size 256, 4,096 slots; median of 20 pairs).

    Args:
        config: configuration of the model; must have the gated SiLU activation without clamp and offset.
    """

    # Not a torch.nn.Module: it has no state, and megatron-core would look for it in checkpoints.

    def __init__(self, config: TransformerConfig) -> None:
        assert config.gated_linear_unit and config.activation_func is torch.nn.functional.silu
        assert config.activation_func_clamp_value is None and config.glu_linear_offset == 0.0

    def __call__(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """Return the activation [..., width] of gate and up, [..., 2 · width]."""
        output: torch.Tensor = _SwiGLUFunction.apply(gate_and_up)
        return output


class _SwiGLUFunction(torch.autograd.Function):
    """SwiGLU with the same operations on the same elements as autograd, so that results are bitwise equal."""

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
        gate_gradient, up_gradient = result.chunk(2, dim=-1)
        # Written into the two halves of one tensor, and silu(gate) is computed again: it saves memory traffic.
        torch.mul(gradient, torch.nn.functional.silu(gate), out=up_gradient)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=gate_gradient)
        return result


class NpuSwiGLU(SwiGLU):
    """SwiGLU with the fused operator torch_npu.npu_swiglu."""

    def __call__(self, gate_and_up: torch.Tensor) -> torch.Tensor:
        """Return the activation [..., width] of gate and up, [..., 2 · width]."""
        import torch_npu

        output: torch.Tensor = torch_npu.npu_swiglu(gate_and_up, dim=-1)
        return output


class NpuRotaryEmbedding(PackedRotaryEmbedding):
    """Rotary embedding whose cosine and sine core_attention applies to query and key.

    megatron-core receives no rotary embedding, so that it does not rotate them itself. Cosine and sine are computed
    once per micro-batch, not once per layer.

    Args:
        dtype: dtype of the activations, which npu_rotary_mul requires of cosine and sine.
        others: as in PackedRotaryEmbedding.
    """

    def __init__(self, dtype: torch.dtype, **others: Any) -> None:
        super().__init__(**others)
        self.dtype = dtype

    def cosine_and_sine(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute cosine and sine, [T, 1, 1, rotary size] each, of the position ids, int64 [T]."""
        angles = self(positions)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def apply_rotary(heads: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate query or key with torch_npu.npu_rotary_mul, in its layout SBND with a batch size of 1.

    Args:
        heads: query or key, [T, 1, heads, head size].
        rotary: cosine and sine, [T, 1, 1, rotary size] each. With --rotary-percent below 1 the rotary size is less than
            the head size, and only the first part of each head is rotated.

    Returns:
        A tensor of the same shape.
    """
    import torch_npu

    cosine, sine = rotary
    size = cosine.shape[-1]
    if size == heads.shape[-1]:
        rotated: torch.Tensor = torch_npu.npu_rotary_mul(heads, cosine, sine, "half")
        return rotated
    first_part = torch_npu.npu_rotary_mul(heads[..., :size].contiguous(), cosine, sine, "half")
    return torch.cat((first_part, heads[..., size:]), dim=-1)


@dataclass(frozen=True)
class FusedOps:
    """The operators of a layer on a device.

    Attributes:
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        norm: class of all norms.
        activation: class of the MLP's activation_func; None for megatron-core's own activation.
        rotary: whether torch_npu's operator rotates query and key.
        bias_swiglu: whether megatron-core's fused SwiGLU is used (TransformerConfig.bias_activation_fusion).
        bias_dropout: whether megatron-core's fused bias and dropout is used (TransformerConfig.bias_dropout_fusion).
        torch_fuses_norm: whether PyTorch's RMSNorm is one kernel: on CUDA from torch 2.9 on.
        left_out: flags of fused operators that the device supports and the command does not enable.
    """

    device: str
    norm: type[RMSNorm] | type[LayerNorm] = RMSNorm
    activation: type[SwiGLU] | None = None
    rotary: bool = False
    bias_swiglu: bool = False
    bias_dropout: bool = False
    torch_fuses_norm: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def fuses_norm(self) -> bool:
        """Whether the norm is one operator that saves only its input for the backward pass."""
        return self.norm is not RMSNorm or self.torch_fuses_norm  # PyTorch's LayerNorm is one operator everywhere

    @property
    def fuses_swiglu(self) -> bool:
        """Whether SwiGLU is one function that saves only its input for the backward pass."""
        return self.activation is not None or self.bias_swiglu

    @property
    def names(self) -> list[str]:
        """Names of the fused operators in use; the optimizer's operator is the last."""
        fused = {
            "npu_rms_norm": self.norm is NpuRMSNorm,
            "npu_swiglu": self.activation is NpuSwiGLU,
            "npu_rotary_mul": self.rotary,
            "megatron-core's bias_swiglu": self.bias_swiglu,
            "torch._fused_adamw_": True,
        }
        return [name for name, used in fused.items() if used]

    def __str__(self) -> str:
        """Return the line for the table at the start of a run."""
        without = f"; not enabled: {', '.join(self.left_out)}" if self.left_out else ""
        return f"fused: {', '.join(self.names)}{without}"


def select_fused_ops(flags: DeviceArguments, model: ModelArguments, device: str) -> FusedOps:
    """Select the operators of a layer: by flags on an NPU, `SwiGLU` on the CPU, else those of megatron-core.

    Args:
        flags: device arguments; their --use-fused-* flags are used.
        model: shape of the model; its activation is used.
        device: 'cpu', 'cuda', 'npu' or 'meta'.
    """
    norm: type[RMSNorm] | type[LayerNorm] = LayerNorm if model.normalization == "LayerNorm" else RMSNorm
    if device == "cpu":
        return FusedOps(device, norm, activation=SwiGLU if model.swiglu else None)
    # The fused operators of megatron-core need CUDA.
    if device == "cuda":
        bias_swiglu = flags.use_fused_swiglu and model.swiglu
        return FusedOps(device, norm, bias_swiglu=bias_swiglu, bias_dropout=True, torch_fuses_norm=True)
    if device != "npu":
        return FusedOps(device, norm)
    # A model has no use for the flag of an operator that it does not have, so that flag is not listed as missing.
    enabled = {
        "--use-fused-rmsnorm": flags.use_fused_rmsnorm or norm is LayerNorm,
        "--use-fused-swiglu": flags.use_fused_swiglu or not model.swiglu,
        "--use-fused-rotary-pos-emb": flags.use_fused_rotary_pos_emb or model.learns_positions,
    }
    return FusedOps(
        device,
        norm=NpuRMSNorm if flags.use_fused_rmsnorm and norm is RMSNorm else norm,
        activation=NpuSwiGLU if flags.use_fused_swiglu and model.swiglu else None,
        rotary=flags.use_fused_rotary_pos_emb and not model.learns_positions,
        left_out=tuple(flag for flag, given in enabled.items() if not given),
    )
