"""The dataset of one split of document files: blocks of consecutive tokens, read when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindspeed_llm.data.blending import BlendOrder
from mindspeed_llm.data.block_order import BlockOrder, InterleavedOrder
from mindspeed_llm.data.document_stream import DocumentStream
from mindspeed_llm.data.sample_order import SampleOrder

# Positions after which the sequence of datasets of a blend with weights repeats: 640 KiB instead of 10 bytes per block.
# The share of a dataset differs from its weight by less than one block per pattern.
PATTERN = 1 << 16


@dataclass(frozen=True)
class BlockKind:
    """Kind of document files, which are cut into blocks; compare `FileKind` of packed files."""

    name: str = "blocks"


@dataclass(frozen=True)
class BlockTokens:
    """Tokens of a block and its boundaries.

        tokens     a0 a1 E  b0 b1 | b2        S = 5; one token more, the label of the last slot
        labels     a1 E  b0 b1 b2
        ends       3, 5                       ends of the documents, and of the block

    Attributes:
        tokens: token ids; int64 [S + 1].
        ends: end of each document in the block, and of the block, in slots; ascending.
    """

    tokens: npt.NDArray[np.int64]
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Block `number` of a stream: tokens number · S … (number + 1) · S, the last one included.

    Attributes:
        stream: tokens of the split.
        number: number of the block in the split of its files.
        length: slots of the block, S.
        split: name of the split.
    """

    stream: DocumentStream
    number: int
    length: int
    split: str

    @property
    def sample_id(self) -> tuple[str, int]:
        """Prefix of the files and number of the block in the split."""
        return str(self.stream.documents.files.prefix), self.number

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"block {self.number} of the split {self.split} of {self.stream.documents.files.prefix}"

    def read(self) -> BlockTokens:
        """Read the tokens of the block from the file.

        Raises:
            DataError: The file was truncated or replaced, or cannot be read.
        """
        tokens, ends = self.stream.read(self.number * self.length, self.length + 1)
        inside = ends[ends < self.length].tolist()
        return BlockTokens(tokens, (*inside, self.length))


@dataclass(frozen=True)
class BlockShare:
    """The blocks of one data set that belong to a split.

    Attributes:
        stream: tokens of the split.
        seq_length: slots of a block, S.
    """

    stream: DocumentStream
    seq_length: int

    @property
    def blocks(self) -> int:
        """Number of complete blocks. Each needs one token after its last slot, as in Megatron's GPTDataset."""
        return max(0, self.stream.tokens - 1) // self.seq_length

    @property
    def unused_tokens(self) -> int:
        """Number of tokens at the end that are less than a block."""
        return self.stream.tokens - (self.blocks * self.seq_length + 1) if self.blocks else self.stream.tokens


class BlockDataset:
    """One split of one set of document files, or of a blend of several.

    Block numbers are consecutive: first the blocks of the first data set in file order, then those of the second, and
    so on. `order` returns the order in which they are used for training.

    Args:
        components: share of each data set, with at least one block each.
        weights: weight of each data set; None to use every block once per epoch.
        split: name of the split.
        left_out: shares that have less than a block, so that all of their tokens are unused.
    """

    def __init__(
        self,
        components: Sequence[BlockShare],
        weights: Sequence[float] | None = None,
        split: str = "train",
        left_out: Sequence[BlockShare] = (),
    ) -> None:
        assert components and all(component.blocks for component in components)
        assert weights is None or len(weights) == len(components)
        self.components = tuple(components)
        self.weights = None if weights is None else tuple(weights)
        self.split = split
        self.left_out = tuple(left_out)
        self._ends = np.cumsum([component.blocks for component in components])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of a split of {len(self)}")
        # side="right", because an end is the number of the first block of the next data set.
        which = int(np.searchsorted(self._ends, index, side="right"))
        component = self.components[which]
        number = index - (int(self._ends[which]) - component.blocks)
        return Block(component.stream, number, component.seq_length, self.split)

    def sample_id(self, index: int) -> tuple[str, int]:
        """Return the prefix of the files and the number, in their split, of block `index`."""
        return self[index].sample_id

    @property
    def sources(self) -> tuple[str, ...]:
        """Prefix of each data set, as in the sample ids."""
        return tuple(dict.fromkeys(str(component.stream.documents.files.prefix) for component in self.components))

    @property
    def unused_tokens(self) -> int:
        """Number of tokens of all data sets that are in no block."""
        return sum(share.unused_tokens for share in (*self.components, *self.left_out))

    def order(self, seed: int, shuffle: bool = True, round_up_to: int | None = None) -> SampleOrder:
        """Return the order in which the blocks of this split are used.

        Args:
            seed: seed of the run.
            shuffle: False with --no-shuffle.
            round_up_to: number of blocks to which each epoch is rounded up with --padded-samples, else None.
        """
        sizes = [component.blocks for component in self.components]
        if self.weights is not None and len(sizes) > 1:
            return BlendOrder(sizes, self.weights, seed, shuffle, round_up_to, BlockOrder, PATTERN)
        if shuffle or len(sizes) == 1:
            return BlockOrder(len(self), seed, shuffle, round_up_to)
        return InterleavedOrder(sizes, round_up_to)
