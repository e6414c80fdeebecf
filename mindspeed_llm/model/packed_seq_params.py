"""The boundaries of a micro-batch in the form that travels through megatron-core."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class PackedBoundaries(PackedSeqParams):
    """PackedSeqParams that carry what our attention and rotary embedding need, as values.

    megatron-core hands packed_seq_params unchanged from GPTModel.forward to every layer, recomputed ones included.
    The format is 'sbhd' with a batch dimension of 1, for which it does nothing of its own with them: 'thd' would
    rotate segment by segment in Python.

    Attributes:
        actual_seq_len: cumulative end of every segment of the micro-batch, no leading zero, last = T; host ints.
        positions: [T] int64, rotary position of every token.
        rotary: cosine and sine of every token, [T, 1, 1, rotary size], where core_attention rotates query and key.
    """

    actual_seq_len: tuple[int, ...] = ()
    positions: torch.Tensor | None = None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        self.qkv_format = "sbhd"
