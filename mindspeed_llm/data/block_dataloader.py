"""The dataloader of blocks: documents for pretraining, of which every token is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindspeed_llm.boundaries import Boundaries
from mindspeed_llm.data.block_dataset import Block
from mindspeed_llm.data.dataloader import SampleColumns, TokenDataLoader


class BlockDataLoader(TokenDataLoader[Block]):
    """Dataloader of one rank for one split of blocks.

    A block has one token more than slots, so its last slot has a label. The label of an end token is the first token of
    the next document, as in Megatron's GPTDataset. With --reset-position-ids or --reset-attention-mask the documents
    of a block are its segments; without them a block is one segment. With S = 5 and a micro-batch of one block:

        slot             0  1  2  3  4
        tokens           a0 a1 E  b0 b1
        labels           a1 E  b0 b1 b2
        actual_seq_len   3, 5                  5 without the flags
        positions        0  1  2  0  1         with --reset-position-ids
    """

    def _width(self, samples: Sequence[Block]) -> int:
        return self.settings.seq_length

    def _row(self, sample: Block, width: int) -> SampleColumns:
        # Every pipeline stage needs the boundaries, which come from the index; the tokens of a block are a few KiB.
        read = sample.read()
        self._check_vocabulary(sample.name, read.tokens, None)
        ends = read.ends if self.settings.split_at_end_tokens else (width,)
        return SampleColumns(Boundaries(ends, 0), read.tokens[:-1], read.tokens[1:])

    def _shifted_labels(
        self, rows: Sequence[SampleColumns], width: int, slots: int, ends: tuple[int, ...]
    ) -> np.ndarray:
        labels = self._unlabelled(slots)
        for number, row in enumerate(rows):
            assert row.labels is not None
            labels[number * width : number * width + len(row.labels)] = row.labels
        return labels
