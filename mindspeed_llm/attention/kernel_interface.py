"""Interface of the attention kernels.

A stream of six slots: two samples of three and two tokens, and one slot of padding, actual_seq_len (3, 5, 6).
Row: query; column: key; 1: the query attends to the key.

             a0 a1 a2 b0 b1 .
        a0   1
        a1   1  1
        a2   1  1  1
        b0            1
        b1            1  1
        .                   1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch


class AttentionKernel(Protocol):
    """Causal attention inside every segment, without attention between segments.

    Every kernel is tested against `dense_attention.DenseAttention` in float64.

    Attributes:
        name: name of the kernel in tables and messages.
        row_bytes: bytes that the kernel saves for the backward pass per row of scores, that is per token and head;
            usually the log-sum-exp of the row in float32.
    """

    name: ClassVar[str]
    row_bytes: ClassVar[int]

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """Return None if the kernel supports the case, else the reason as part of a sentence without its subject.

        Args:
            device: 'cpu', 'cuda', 'npu' or 'meta'.
            dtype: dtype of query, key and value.
            head_size: size of one attention head.
        """
        ...

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Compute attention inside every segment.

        Args:
            query: [T, heads, head size].
            key: [T, groups, head size]; heads is a multiple of groups, and query head h uses group
                h // (heads / groups). The groups are repeated in memory only if the kernel requires it.
            value: [T, groups, head size].
            actual_seq_len: cumulative ends of the segments as host integers, without a leading zero; the last is T.
            softmax_scale: factor of the scores, usually 1 / sqrt(head size).

        Returns:
            [T, heads, head size] in the dtype of the query.
        """
        ...
