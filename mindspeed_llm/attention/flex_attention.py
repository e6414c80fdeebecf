"""PyTorch's flex attention with a block mask of the segments: for CUDA without flash attention, or in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.boundaries import segment_lengths

BLOCK = 128  # slots; the default block size of torch's block masks


def block_mask(actual_seq_len: Sequence[int], device: torch.device) -> Any:
    """Create flex attention's BlockMask, which marks blocks of 128 × 128 as empty, full or partial.

    Args:
        actual_seq_len: cumulative ends of the segments; the last is T.
        device: the device of the mask.

    Returns:
        A torch BlockMask of a [T, T] mask.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = torch.tensor(segment_lengths(actual_seq_len))
    # On the host, where the lengths are: on a device, repeat_interleave would wait for the size of its result.
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)

    def attends(batch: Any, head: Any, row: Any, column: Any) -> Any:
        return (segment[row] == segment[column]) & (row >= column)

    total = actual_seq_len[-1]
    return create_block_mask(attends, None, None, total, total, device=device, BLOCK_SIZE=BLOCK)


@functools.cache
def _compiled(device: str) -> Callable[..., Any]:
    """Return flex_attention, compiled on CUDA."""
    from torch.nn.attention.flex_attention import flex_attention

    # It is a fused kernel only if compiled. On the CPU, where only tests call it, the uncompiled function is enough.
    compiled: Any = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    return compiled


class FlexAttention:
    """One call of flex_attention per micro-batch; its cost grows with the number of blocks that the segments touch."""

    name: ClassVar[str] = "flex attention"
    row_bytes: ClassVar[int] = 4

    def __init__(self) -> None:
        self._block_masks = BoundaryCache(block_mask)

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return the reason if the device, dtype or head size is not supported, else None."""
        if device != "cuda":
            return "is a fused kernel only on CUDA"
        if dtype == torch.float64:
            return "does not support float64"
        if head_size < 16:
            return f"supports head sizes from 16, not {head_size}"
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
        batched = [part.transpose(0, 1).unsqueeze(0) for part in (query, key, value)]
        output = _compiled(query.device.type)(
            *batched,
            block_mask=self._block_masks(actual_seq_len, query.device),
            scale=softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.squeeze(0).transpose(0, 1)
