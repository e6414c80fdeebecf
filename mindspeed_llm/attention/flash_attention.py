"""Flash attention over a packed stream on CUDA: PyTorch's varlen attention, or the flash-attn package.

Both kernels take the boundaries as an int32 tensor on the device, with a leading zero, and the length of the longest
segment as a host integer. They are computed once per micro-batch from the host's list, without a read from the device.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.boundaries import segment_lengths

MOST_HEAD_SIZE = 256
LEAST_CAPABILITY = (8, 0)  # Ampere
LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class CumulativeLengths:
    """Boundaries in the form of the flash attention kernels.

    Attributes:
        ends: int32 [segments + 1] on the device: 0, then the cumulative end of every segment.
        longest: length of the longest segment in slots, a host integer.
    """

    ends: torch.Tensor
    longest: int


def cumulative_lengths(actual_seq_len: Sequence[int], device: torch.device) -> CumulativeLengths:
    """Convert boundaries for the flash attention kernels: (3, 5, 6) → ends 0, 3, 5, 6 and longest 3.

    Args:
        actual_seq_len: cumulative ends of the segments, without a leading zero.
        device: the device of the tensor.
    """
    ends = torch.tensor((0, *actual_seq_len), dtype=torch.int32)
    # Pinned, so that the copy does not block the host.
    if device.type == "cuda":
        ends = ends.pin_memory().to(device, non_blocking=True)
    return CumulativeLengths(ends, max(segment_lengths(actual_seq_len)))


def _common_unsupported(device: str, dtype: torch.dtype, head_size: int) -> str | None:
    """Return why neither kernel supports the case, or None."""
    if device != "cuda":
        return "requires CUDA"
    if dtype not in LOW_PRECISION:
        return f"supports float16 and bfloat16, not {dtype}"
    if head_size > MOST_HEAD_SIZE or head_size % 8:
        return f"supports head sizes up to {MOST_HEAD_SIZE} in multiples of 8, not {head_size}"
    # A dry run plans for CUDA on a machine without a GPU: there the capability is unknown and not checked.
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        versions = (LEAST_CAPABILITY, torch.cuda.get_device_capability())
        required, actual = (".".join(map(str, version)) for version in versions)
        return f"requires a GPU of compute capability {required} or higher, this GPU has {actual}"
    return None


class TorchVarlenAttention:
    """torch.nn.attention.varlen.varlen_attn, in versions of torch that have it with grouped queries."""

    name: ClassVar[str] = "torch varlen"
    row_bytes: ClassVar[int] = 4

    def __init__(self) -> None:
        self._boundaries = BoundaryCache(cumulative_lengths)

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return the reason if the device, dtype, head size or version of torch is not supported, else None."""
        return _common_unsupported(device, dtype, head_size) or _torch_lacks()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Compute attention; arguments and shapes as in `AttentionKernel`: query [T, heads, head size]."""
        from torch.nn.attention.varlen import varlen_attn

        boundaries = self._boundaries(actual_seq_len, query.device)
        output = varlen_attn(
            query,
            key,
            value,
            boundaries.ends,
            boundaries.ends,
            boundaries.longest,
            boundaries.longest,
            scale=softmax_scale,
            window_size=(-1, 0),  # causal
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(output, torch.Tensor)  # a tuple with the log-sum-exp only with return_aux
        return output


@functools.cache
def _torch_lacks() -> str | None:
    """Return why the varlen attention of the installed torch is not sufficient, or None."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} does not have it"
    from torch.nn.attention.varlen import varlen_attn

    # Its first versions had neither a scale nor grouped queries.
    missing = {"scale", "window_size", "enable_gqa"} - set(inspect.signature(varlen_attn).parameters)
    return f"varlen_attn of torch {torch.__version__} has no {', '.join(sorted(missing))}" if missing else None


class FlashAttention:
    """flash_attn_varlen_func of the flash-attn package (Dao, 2023), where it is installed."""

    name: ClassVar[str] = "flash-attn"
    row_bytes: ClassVar[int] = 4

    def __init__(self) -> None:
        self._boundaries = BoundaryCache(cumulative_lengths)

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return the reason if the device, dtype, head size or flash-attn package is not supported, else None."""
        reason = _common_unsupported(device, dtype, head_size)
        if reason is not None:
            return reason
        if importlib.util.find_spec("flash_attn") is None:
            return "flash-attn is not installed"
        from flash_attn import flash_attn_varlen_func

        # Without this parameter, --deterministic-mode could not be obeyed.
        if "deterministic" not in inspect.signature(flash_attn_varlen_func).parameters:
            return "this flash-attn has no deterministic gradients: 2.4.1 or newer is needed"
        return None

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Compute attention; arguments and shapes as in `AttentionKernel`: query [T, heads, head size]."""
        from flash_attn import flash_attn_varlen_func

        boundaries = self._boundaries(actual_seq_len, query.device)
        output: torch.Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=boundaries.ends,
            cu_seqlens_k=boundaries.ends,
            max_seqlen_q=boundaries.longest,
            max_seqlen_k=boundaries.longest,
            softmax_scale=softmax_scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return output
