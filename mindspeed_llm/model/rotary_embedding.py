"""Rotary position embedding, gathered once per micro-batch by each token's own position."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from mindspeed_llm.model.packed_seq_params import PackedBoundaries


class PackedRotaryEmbedding(RotaryEmbedding):
    """megatron-core's rotary frequencies (Su et al., 2021), looked up by position.

    GPTModel asks `get_rotary_seq_len` for a length and hands the answer to `forward`. Here the answer is the
    positions of the micro-batch, and `forward` gathers the rows of a table that is computed once. All layers of a
    stage share the result, and its cost does not depend on the number of segments.

    Args:
        max_positions: rows of the table; every position is below it.
        others: as in megatron-core's RotaryEmbedding.
    """

    def __init__(self, max_positions: int, **others: Any) -> None:
        super().__init__(**others)
        self.max_positions = max_positions
        self._table: torch.Tensor | None = None

    def get_rotary_seq_len(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Positions of the micro-batch, [T] int64."""
        packed = keywords.get("packed_seq_params", arguments[-1] if arguments else None)
        assert isinstance(packed, PackedBoundaries) and packed.positions is not None
        return packed.positions

    def forward(self, positions: torch.Tensor, packed_seq: bool = False, cp_group: Any = None) -> torch.Tensor:
        """Angles of every token, [T, 1, 1, rotary size] in float32."""
        if self._table is None or self._table.device != positions.device:
            self._table = self.get_emb(self.max_positions)
        return self._table.index_select(0, positions)
