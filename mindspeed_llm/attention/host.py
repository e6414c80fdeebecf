"""The CPU's attention: torch's own flash attention on each segment, its results written straight into the stream's.

Costs Σ len². `segments.SegmentAttention` joins the outputs of all segments at the end, and in the backward pass their
gradients. By then they have left the cache, and the memory they lie in was handed out and zeroed by the system page
after page, unless malloc keeps it: of 32,768 tokens in 328 segments that was a third of the time. Here a segment's
result is copied to its place at once, from the cache, and its memory serves the next segment. Of the outputs only the
joined one is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch.nn.attention import SDPBackend

from mindspeed_llm.attention.contract import segment_lengths
from mindspeed_llm.attention.segments import split_segments


class HostAttention:
    """One call of torch's flash attention for the CPU for each segment, forward and backward."""

    name: ClassVar[str] = "flash segments"

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """It needs the CPU and a torch whose flash attention takes grouped queries there (2.9)."""
        if device != "cpu":
            return "runs on the CPU alone"
        return _torch_lacks(dtype, head_size)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Attend; shapes as in `contract.Kernel`."""
        output: torch.Tensor = _InPlace.apply(query, key, value, segment_lengths(actual_seq_len), softmax_scale)
        return output


@functools.cache
def _torch_lacks(dtype: torch.dtype, head_size: int) -> str | None:
    """Why this torch would not take its flash attention for grouped queries on the CPU, or None."""
    query, key = (torch.empty(1, heads, 2, head_size, dtype=dtype, device="cpu") for heads in (2, 1))
    chosen = torch._fused_sdp_choice(query, key, key, None, 0.0, True, scale=1.0, enable_gqa=True)
    if chosen == SDPBackend.FLASH_ATTENTION.value:
        return None
    return f"torch {torch.__version__} has no flash attention for groups and {dtype} on the CPU"


class _InPlace(torch.autograd.Function):
    """The stream's output and gradients as whole tensors that segment after segment is written into."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scale: float
    ) -> torch.Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        parts = zip(*(split_segments(part, lengths) for part in (query, key, value, output)), strict=True)
        sums = []  # of each row's exponentials, as logarithms
        for q, k, v, out in parts:
            done, logarithms = attend(q, k, v, 0.0, True, scale=scale)
            out.copy_(done)
            sums.append(logarithms)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.lengths, ctx.scale = lengths, scale
        return output

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        query, key, value, output, *sums = ctx.saved_tensors
        gradients = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value)]
        streams = (upstream, query, key, value, output, *gradients)
        parts = zip(*(split_segments(part, ctx.lengths) for part in streams), sums, strict=True)
        for up, q, k, v, out, *into, logarithms in parts:
            done = attend(up, q, k, v, out, logarithms, 0.0, True, scale=ctx.scale)
            for place, gradient in zip(into, done, strict=True):
                place.copy_(gradient)
        return (*gradients, None, None)
