"""Rotary position embedding by the position id of each token, computed once per micro-batch."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from mindspeed_llm.model.packed_seq_params import PackedBoundaries


class PackedRotaryEmbedding(RotaryEmbedding):
    """megatron-core's rotary frequencies (Su et al., 2021), looked up by position id.

    `forward` gathers rows of a table that is computed once. All layers of a pipeline stage share the result, and its
    cost does not depend on the number of segments.

    Args:
        max_positions: number of rows of the table; all position ids must be less.
        others: keyword arguments of megatron-core's RotaryEmbedding.
    """

    def __init__(self, max_positions: int, **others: Any) -> None:
        super().__init__(**others)
        self.max_positions = max_positions
        self._table: torch.Tensor | None = None

    def get_rotary_seq_len(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Return the position ids of the micro-batch, int64 [T], in place of a sequence length.

        Args:
            arguments: positional arguments of megatron-core's method; the last may be the PackedBoundaries.
            keywords: its keyword arguments; packed_seq_params is used.
        """
        # GPTModel passes the result to `forward` without looking at it, so that it may be a tensor.
        packed = keywords.get("packed_seq_params", arguments[-1] if arguments else None)
        assert isinstance(packed, PackedBoundaries) and packed.positions is not None
        return packed.positions

    def forward(self, positions: torch.Tensor, packed_seq: bool = False, cp_group: Any = None) -> torch.Tensor:
        """Return the angles of every token, float32 [T, 1, 1, rotary size].

        Args:
            positions: int64 [T], position id of every token.
            packed_seq: not used.
            cp_group: not used.
        """
        # At the first use, because the device of the positions is not known before.
        if self._table is None or self._table.device != positions.device:
            self._table = self.get_emb(self.max_positions)
        return self._table.index_select(0, positions)
