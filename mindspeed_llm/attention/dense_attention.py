"""Reference attention with a dense T × T mask: slow and simple. The tests compare every other kernel with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch


def dense_mask(actual_seq_len: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Build the block-diagonal causal mask of a stream.

    Args:
        actual_seq_len: cumulative ends of the segments; the last is T.
        device: the device of the mask.

    Returns:
        bool [T, T], True where query row i attends to key column j: same segment and j <= i.
    """
    total = actual_seq_len[-1]
    ends = torch.tensor(actual_seq_len, device=device)
    position = torch.arange(total, device=device)
    segment = torch.bucketize(position, ends, right=True)
    return (segment[:, None] == segment[None, :]) & (position[None, :] <= position[:, None])


class DenseAttention:
    """Compute softmax(q kᵀ · scale, masked) v in the dtype of the inputs; float64 inputs give a reference."""

    name: ClassVar[str] = "dense"
    row_bytes: ClassVar[int] = 4

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return None: it runs on every device. Only tests use it, because it takes T² time and memory."""
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
        repeats = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
        scores = scores.masked_fill(~dense_mask(actual_seq_len, query.device), float("-inf"))
        return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value)
