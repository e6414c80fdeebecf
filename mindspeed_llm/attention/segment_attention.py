"""Attention segment by segment with PyTorch's scaled_dot_product_attention: costs Σ length², runs on every device.

This is the kernel of the CPU, and of CUDA where no fused kernel supports the case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from mindspeed_llm.boundaries import segment_lengths


def split_segments(stream: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, ...]:
    """Split a stream into segments in the layout of scaled_dot_product_attention.

    Args:
        stream: [T, heads, size].
        lengths: length of each segment; their sum is T.

    Returns:
        For each segment a view [1, heads, length, size].
    """
    return stream.transpose(0, 1).unsqueeze(0).split(lengths, dim=2)


class SegmentAttention:
    """One call of scaled_dot_product_attention for each segment."""

    name: ClassVar[str] = "segments"
    row_bytes: ClassVar[int] = 4

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return None: it runs on every device and with every floating-point dtype."""
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
        lengths = segment_lengths(actual_seq_len)
        grouped = query.shape[1] != key.shape[1]
        # One split and one concatenation: their backward passes concatenate and split the gradients. Slicing would add
        # a gradient of the complete stream for each segment, at a cost of segments · T.
        streams = [split_segments(part, lengths) for part in (query, key, value)]
        outputs = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=grouped)
            for q, k, v in zip(*streams, strict=True)
        ]
        return torch.cat([output.squeeze(0).transpose(0, 1) for output in outputs])
