"""Flash attention over a packed stream on CUDA: torch's own, or the flash-attn package.

Both take the boundaries as int32 on the device, with a leading zero, and the longest segment as a host integer. They
are made once for a micro-batch from the host's list; nothing is read back from the device.
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
    """The boundaries as flash attention takes them.

    Attributes:
        ends: int32 [segments + 1] on the device: 0, then the end of every segment.
        longest: tokens of the longest segment, a host integer.
    """

    ends: torch.Tensor
    longest: int


def cumulative_lengths(actual_seq_len: Sequence[int], device: torch.device) -> CumulativeLengths:
    """(3, 5, 6) gives ends 0, 3, 5, 6 and longest 3."""
    ends = torch.tensor((0, *actual_seq_len), dtype=torch.int32)
    if device.type == "cuda":
        ends = ends.pin_memory().to(device, non_blocking=True)
    return CumulativeLengths(ends, max(segment_lengths(actual_seq_len)))


def _refused(device: str, dtype: torch.dtype, head_size: int) -> str | None:
    """What both kernels refuse."""
    if device != "cuda":
        return "needs CUDA"
    if dtype not in LOW_PRECISION:
        return f"takes float16 and bfloat16, not {dtype}"
    if head_size > MOST_HEAD_SIZE or head_size % 8:
        return f"takes head sizes to {MOST_HEAD_SIZE} in steps of 8, not {head_size}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        least, here = (".".join(map(str, one)) for one in (LEAST_CAPABILITY, torch.cuda.get_device_capability()))
        return f"takes GPUs of compute capability {least} and above, this one has {here}"
    return None


class TorchVarlenAttention:
    """torch.nn.attention.varlen.varlen_attn, in a torch that has it with grouped queries."""

    name: ClassVar[str] = "torch varlen"
    row_bytes: ClassVar[int] = 4

    def __init__(self) -> None:
        self._prepared = BoundaryCache(cumulative_lengths)

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """It needs CUDA, low precision and a new enough torch."""
        return _refused(device, dtype, head_size) or _torch_lacks()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Attend; shapes as in `contract.Kernel`."""
        from torch.nn.attention.varlen import varlen_attn

        at = self._prepared(actual_seq_len, query.device)
        output = varlen_attn(
            query,
            key,
            value,
            at.ends,
            at.ends,
            at.longest,
            at.longest,
            scale=softmax_scale,
            window_size=(-1, 0),  # causal
            enable_gqa=query.shape[1] != key.shape[1],
        )
        assert isinstance(output, torch.Tensor)  # the sum of exponentials comes with it only when asked for
        return output


@functools.cache
def _torch_lacks() -> str | None:
    """Why this torch's varlen attention does not do, or None. Its first versions had neither scale nor groups."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} does not have it"
    from torch.nn.attention.varlen import varlen_attn

    missing = {"scale", "window_size", "enable_gqa"} - set(inspect.signature(varlen_attn).parameters)
    return f"that of torch {torch.__version__} has no {', '.join(sorted(missing))}" if missing else None


class FlashAttention:
    """flash_attn_varlen_func of the flash-attn package (Dao, 2023), where it is installed."""

    name: ClassVar[str] = "flash-attn"
    row_bytes: ClassVar[int] = 4

    def __init__(self) -> None:
        self._prepared = BoundaryCache(cumulative_lengths)

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """It needs CUDA, low precision and the package, not too old a one."""
        reason = _refused(device, dtype, head_size)
        if reason is not None:
            return reason
        if importlib.util.find_spec("flash_attn") is None:
            return "flash-attn is not installed"
        from flash_attn import flash_attn_varlen_func

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
        """Attend; shapes as in `contract.Kernel`."""
        from flash_attn import flash_attn_varlen_func

        at = self._prepared(actual_seq_len, query.device)
        output: torch.Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=at.ends,
            cu_seqlens_k=at.ends,
            max_seqlen_q=at.longest,
            max_seqlen_k=at.longest,
            softmax_scale=softmax_scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return output
