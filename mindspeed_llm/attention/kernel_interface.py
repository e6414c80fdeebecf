"""What every attention kernel takes, gives and promises.

Six tokens in one stream, two samples of three and two tokens and one slot of padding, actual_seq_len (3, 5, 6).
Row: query; column: key; 1: attended.

            a a a b b .
        a   1
        a   1 1
        a   1 1 1
        b         1
        b         1 1
        .             1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch


class AttentionKernel(Protocol):
    """Causal attention inside every segment, nothing across segments.

    A kernel must be tested against `dense.DenseAttention` in float64.

    Attributes:
        name: of the kernel, as tables and messages print it.
        row_bytes: bytes kept of each row of scores for the backward pass: usually the logarithm of its sum in float32.
    """

    name: ClassVar[str]
    row_bytes: ClassVar[int]

    def unsupported(self, device: str, dtype: torch.dtype, head_size: int) -> str | None:
        """None if this kernel can run there, else the reason why not, as a clause for a person."""
        ...

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        actual_seq_len: Sequence[int],
        softmax_scale: float,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: [T, heads, head size].
            key: [T, groups, head size]; heads is a multiple of groups, and query head h uses group
                h // (heads / groups). Never repeated in memory where the kernel need not.
            value: [T, groups, head size].
            actual_seq_len: cumulative end of every segment, no leading zero, last = T; plain host ints.
            softmax_scale: factor of the scores, usually 1 / sqrt(head size).

        Returns:
            [T, heads, head size].
        """
        ...
