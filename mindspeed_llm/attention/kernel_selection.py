"""Select the attention kernel of a device, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mindspeed_llm.attention.flash_attention import FlashAttention, TorchVarlenAttention
from mindspeed_llm.attention.flex_attention import FlexAttention
from mindspeed_llm.attention.kernel_interface import AttentionKernel
from mindspeed_llm.attention.npu_fusion_attention import NpuFusionAttention
from mindspeed_llm.attention.segment_attention import SegmentAttention
from mindspeed_llm.errors import DeviceError

# In order of preference: the first kernel that supports the case is used. `segments` comes last where there are fused
# kernels, because its number of calls grows with the number of segments.
KERNELS: dict[str, tuple[AttentionKernel, ...]] = {
    "cpu": (SegmentAttention(),),
    "cuda": (TorchVarlenAttention(), FlashAttention(), FlexAttention(), SegmentAttention()),
    "npu": (NpuFusionAttention(),),
    "meta": (SegmentAttention(),),
}


def saved_bytes_per_row(device: str, kernel: str | None) -> int:
    """Return the bytes that a kernel saves for the backward pass per row of scores (per token and head).

    Args:
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        kernel: name of the kernel; None for the first kernel of the device, which need not be installed here.
    """
    if kernel is None:
        return KERNELS[device][0].row_bytes
    return next(entry.row_bytes for kernels in KERNELS.values() for entry in kernels if entry.name == kernel)


@dataclass(frozen=True)
class KernelChoice:
    """A selected kernel and the reason for it.

    Attributes:
        kernel: the kernel.
        reason: why it was selected and why each preferred kernel was not, for the table at the start of a run.
    """

    kernel: AttentionKernel
    reason: str


def select_kernel(device: str, dtype: torch.dtype, head_size: int) -> KernelChoice:
    """Select the first kernel of the device that supports the dtype and head size.

    Args:
        device: 'cpu', 'cuda', 'npu' or 'meta'.
        dtype: dtype of query, key and value.
        head_size: size of one attention head.

    Raises:
        DeviceError: No kernel of the device supports the case. The message contains the reason of every kernel.
    """
    rejected: list[str] = []
    for kernel in KERNELS[device]:
        reason = kernel.unsupported(device, dtype, head_size)
        if reason is None:
            return KernelChoice(kernel, "; ".join([*rejected, f"{kernel.name} supports {dtype} on {device}"]))
        rejected.append(f"{kernel.name}: {reason}")
    raise DeviceError(f"no attention kernel for {dtype}, head size {head_size} on {device}: " + "; ".join(rejected))
