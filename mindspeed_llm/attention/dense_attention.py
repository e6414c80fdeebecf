"""The reference: attention with a dense T × T mask, written out. Slow, obvious, what the others are tested against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch


def dense_mask(actual_seq_len: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """[T, T] bool, True where query row i attends to key column j: same segment and j <= i."""
    total = actual_seq_len[-1]
    ends = torch.tensor(actual_seq_len, device=device)
    position = torch.arange(total, device=device)
    segment = torch.bucketize(position, ends, right=True)
    return (segment[:, None] == segment[None, :]) & (position[None, :] <= position[:, None])


class DenseAttention:
    """softmax(q kᵀ · scale, masked) v in the type of the input, float64 for a reference."""

    name: ClassVar[str] = "dense"
    row_bytes: ClassVar[int] = 4

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Runs on every device; chosen by tests only, for it costs T² in time and memory."""
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
        repeats = query.shape[1] // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * softmax_scale
        scores = scores.masked_fill(~dense_mask(actual_seq_len, query.device), float("-inf"))
        return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), value)
