"""torch's flex attention with a block mask made from the boundaries: CUDA without flash attention, or in float32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from mindspeed_llm.attention.boundary_cache import BoundaryCache
from mindspeed_llm.boundaries import segment_lengths

BLOCK = 128


def block_mask(actual_seq_len: Sequence[int], device: torch.device) -> Any:
    """flex attention's mask of the segments: which blocks of 128 × 128 are empty, whole or in part attended."""
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = torch.tensor(segment_lengths(actual_seq_len))
    # Numbered on the host, where the lengths are: repeat_interleave on a device would wait for its result's size.
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device)

    def attends(batch: Any, head: Any, row: Any, column: Any) -> Any:
        return (segment[row] == segment[column]) & (row >= column)

    total = actual_seq_len[-1]
    return create_block_mask(attends, None, None, total, total, device=device, BLOCK_SIZE=BLOCK)


@functools.cache
def _compiled(device: str) -> Callable[..., Any]:
    """flex attention is a fused kernel only when compiled; uncompiled, on the CPU, it is a slow reference."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Any = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention
    return compiled


class FlexAttention:
    """One call of flex_attention for a micro-batch; its cost follows the blocks that a segment touches."""

    name: ClassVar[str] = "flex attention"
    row_bytes: ClassVar[int] = 4

    def __init__(self) -> None:
        self._prepared = BoundaryCache(block_mask)

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """It is a fused kernel on CUDA alone."""
        if device != "cuda":
            return "is fused on CUDA alone"
        if dtype == torch.float64:
            return "does not take float64"
        if head_size < 16:
            return f"takes head sizes from 16, not {head_size}"
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
        batched = [part.transpose(0, 1).unsqueeze(0) for part in (query, key, value)]
        output = _compiled(query.device.type)(
            *batched,
            block_mask=self._prepared(actual_seq_len, query.device),
            scale=softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.squeeze(0).transpose(0, 1)
