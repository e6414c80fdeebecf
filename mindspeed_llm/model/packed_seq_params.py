"""Boundaries and position ids of a micro-batch in the form that megatron-core passes to the layers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams


@dataclass(frozen=True)
class VirtualSlots:
    """The slots that are reserved for virtual tokens, p at the beginning of every sample.

    Attributes:
        slots: their positions in the stream, ascending, int64 [samples · p]. Host values: shapes follow from them.
        device: device of the model.
    """

    slots: np.ndarray
    device: torch.device

    @functools.cached_property
    def index(self) -> torch.Tensor:
        """`slots` on the device of the model, int64 [samples · p]."""
        return torch.from_numpy(self.slots).to(self.device, non_blocking=True)

    def part(self, first: int, last: int) -> tuple[torch.Tensor, slice]:
        """Return the slots of one part of the stream.

        Args:
            first: first position of the part.
            last: position after the part.

        Returns:
            Their positions in the part, int64 [n], and which of all reserved slots they are.
        """
        start, end = (int(position) for position in np.searchsorted(self.slots, (first, last)))
        return self.index[start:end] - first, slice(start, end)


@dataclass
class PackedBoundaries(PackedSeqParams):
    """PackedSeqParams with the inputs of our attention and rotary embedding.

    megatron-core passes packed_seq_params unchanged from GPTModel.forward to every layer, also to recomputed layers.

    Attributes:
        actual_seq_len: cumulative ends of the segments of the micro-batch as host integers, without a leading zero; the
            last is T.
        positions: int64 [T], position id of every token.
        rotary: cosine and sine of every token, [T, 1, 1, rotary size] each; None if megatron-core rotates.
        virtual_slots: slots that are reserved for virtual tokens; None if the data has none.
    """

    actual_seq_len: tuple[int, ...] = ()
    positions: torch.Tensor | None = None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    virtual_slots: VirtualSlots | None = None

    def __post_init__(self) -> None:
        # With 'sbhd' and a batch size of 1 megatron-core does not use the boundaries itself. With 'thd' it would rotate
        # query and key segment by segment in Python.
        self.qkv_format = "sbhd"
