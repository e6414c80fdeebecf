"""Attention segment by segment through torch's scaled_dot_product_attention: costs Σ len², runs everywhere.

The kernel of the CPU, and of a device that has no fused kernel for a case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from mindspeed_llm.boundaries import segment_lengths


def split_segments(stream: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, ...]:
    """[T, heads, size] → for each segment [1, heads, length, size], as scaled_dot_product_attention has it; views."""
    return stream.transpose(0, 1).unsqueeze(0).split(lengths, dim=2)


class SegmentAttention:
    """One call of scaled_dot_product_attention for each segment.

    The stream is split once and joined once, so that the backward pass joins the gradients of the segments instead
    of adding a gradient of the whole stream for each of them (slicing would cost segments · T).
    """

    name: ClassVar[str] = "segments"
    row_bytes: ClassVar[int] = 4

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Runs on every device and floating-point type."""
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
        lengths = segment_lengths(actual_seq_len)
        grouped = query.shape[1] != key.shape[1]
        streams = [split_segments(part, lengths) for part in (query, key, value)]
        outputs = [
            scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=grouped)
            for q, k, v in zip(*streams, strict=True)
        ]
        return torch.cat([output.squeeze(0).transpose(0, 1) for output in outputs])
