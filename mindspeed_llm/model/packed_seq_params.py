"""Boundaries and position ids of a micro-batch in the form that megatron-core passes to the layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class PackedBoundaries(PackedSeqParams):
    """PackedSeqParams with the inputs of our attention and rotary embedding.

    megatron-core passes packed_seq_params unchanged from GPTModel.forward to every layer, also to recomputed layers.

    Attributes:
        actual_seq_len: cumulative ends of the segments of the micro-batch as host integers, without a leading zero; the
            last is T.
        positions: int64 [T], position id of every token.
        rotary: cosine and sine of every token, [T, 1, 1, rotary size] each; None if megatron-core rotates.
    """

    actual_seq_len: tuple[int, ...] = ()
    positions: torch.Tensor | None = None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        # With 'sbhd' and a batch size of 1 megatron-core does not use the boundaries itself. With 'thd' it would rotate
        # query and key segment by segment in Python.
        self.qkv_format = "sbhd"
