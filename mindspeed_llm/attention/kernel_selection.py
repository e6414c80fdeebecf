"""The table that chooses a kernel for a device and says why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mindspeed_llm.attention.flash_attention import FlashAttention, TorchVarlenAttention
from mindspeed_llm.attention.flex_attention import FlexAttention
from mindspeed_llm.attention.kernel_interface import AttentionKernel
from mindspeed_llm.attention.npu_fusion_attention import NpuFusionAttention
from mindspeed_llm.attention.segment_attention import SegmentAttention
from mindspeed_llm.errors import DeviceError

# In order of preference; the first that supports the case is taken. A fused kernel goes before `segments`.
KERNELS: dict[str, tuple[AttentionKernel, ...]] = {
    "cpu": (SegmentAttention(),),
    "cuda": (TorchVarlenAttention(), FlashAttention(), FlexAttention(), SegmentAttention()),
    "npu": (NpuFusionAttention(),),
    "meta": (SegmentAttention(),),
}


def saved_bytes_per_row(device: str, kernel: str | None) -> int:
    """Return how many bytes a kernel keeps of each row of scores for the backward pass.

    Args:
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        kernel: name of the kernel; None for the first of the device, which need not be here.
    """
    if kernel is None:
        return KERNELS[device][0].row_bytes
    return next(one.row_bytes for row in KERNELS.values() for one in row if one.name == kernel)


@dataclass(frozen=True)
class KernelChoice:
    """A kernel and the reason it was taken, for the line that a run prints at its start."""

    kernel: AttentionKernel
    reason: str


def select_kernel(device: str, dtype: torch.dtype, head_size: int) -> KernelChoice:
    """The first kernel of the device's row that supports the type and head size.

    Args:
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        dtype: type of query, key and value.
        head_size: size of one attention head.

    Raises:
        DeviceError: no kernel supports the case; the message holds every kernel's reason.
    """
    refused: list[str] = []
    for kernel in KERNELS[device]:
        reason = kernel.unsupported(device, dtype, head_size)
        if reason is None:
            return KernelChoice(kernel, "; ".join([*refused, f"{kernel.name} supports {dtype} on {device}"]))
        refused.append(f"{kernel.name}: {reason}")
    raise DeviceError(f"no attention kernel for {dtype}, head size {head_size} on {device}: " + "; ".join(refused))
