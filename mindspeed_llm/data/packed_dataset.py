"""The packs of one split, read from the files one member at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_llm.data.blending import BlendOrder, MergedOrder
from mindspeed_llm.data.length_grouping import LengthGroupedOrder
from mindspeed_llm.data.sample_order import PackOrder, SampleOrder
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.indexed_dataset import PackedFiles


@dataclass(frozen=True)
class Pack:
    """One pack, or one sample of files made without --pack.

    Its members are read from the files each time they are asked for: a pipeline stage that needs the attention_mask
    alone reads no other file.

    Attributes:
        files: where it lies.
        number: its number there.
        packed: False for files made without --pack.
    """

    files: PackedFiles
    number: int
    packed: bool = True

    @property
    def sample_id(self) -> tuple[str, int]:
        """(prefix, number of the pack)."""
        return str(self.files.prefix), self.number

    @property
    def name(self) -> str:
        """What a message calls it."""
        return f"{'pack' if self.packed else 'sample'} {self.number} of {self.files.prefix}"

    @property
    def length(self) -> int:
        """Slots, without reading any."""
        return int(self.files.attention_mask.lengths[self.number])

    @property
    def input_ids(self) -> np.ndarray:
        """Integers [length]."""
        return self.files.input_ids[self.number]

    @property
    def attention_mask(self) -> np.ndarray:
        """Integers [length]; neat packs: the number of each slot's sample, 0 on padding."""
        return self.files.attention_mask[self.number]

    @property
    def labels(self) -> np.ndarray:
        """Integers [length], not shifted, -100 where nothing is trained."""
        return self.files.labels[self.number]

    @property
    def slot_padding(self) -> int:
        """Slots of padding behind samples, which belong to their segments; 0 but with --pad-to-multiple-of."""
        manifest = self.files.manifest
        if manifest is None or manifest.pad_to_multiple_of == 1:
            return 0
        return int(self.files.slot_padding(self.number).sum())


@dataclass(frozen=True)
class DatasetShare:
    """What one data set gives to a split.

    Attributes:
        files: its packed files.
        packs: numbers of the packs of this split in them; int64, rising.
    """

    files: PackedFiles
    packs: np.ndarray


class PackedDataset:
    """One split of one data set, or of a blend of several.

    Packs are numbered through: those of the first data set in file order, then those of the second, … Which comes
    when is the order's business.

    Args:
        components: one for each data set; each has at least one pack.
        weights: share of each data set; None gives every pack once per epoch.
        packed: False for files made without --pack, one sample per document.
        neat: whether attention_mask numbers the samples.
    """

    def __init__(
        self,
        components: Sequence[DatasetShare],
        weights: Sequence[float] | None = None,
        packed: bool = True,
        neat: bool = True,
    ) -> None:
        assert components and all(len(component.packs) for component in components)
        assert weights is None or len(weights) == len(components)
        self.components = tuple(components)
        self.weights = None if weights is None else tuple(weights)
        self.packed = packed
        self.neat = neat
        self._ends = np.cumsum([len(component.packs) for component in components])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Pack:
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of a split of {len(self)}")
        which = int(np.searchsorted(self._ends, index, side="right"))
        component = self.components[which]
        first = int(self._ends[which]) - len(component.packs)
        return Pack(component.files, int(component.packs[index - first]), self.packed)

    def sample_id(self, index: int) -> tuple[str, int]:
        """(prefix, number of the pack in its files)."""
        return self[index].sample_id

    def lengths(self) -> np.ndarray:
        """Slots of every pack of the split, without reading any; int32 [packs]."""
        return np.concatenate([c.files.attention_mask.lengths[c.packs] for c in self.components])

    def length_grouped_order(self, seed: int, batch: int) -> SampleOrder:
        """An order in groups of `batch` samples of similar lengths (--length-grouped).

        Raises:
            ConfigError: the data cannot be grouped.
        """
        if self.packed:
            raise ConfigError("--length-grouped: these files are packed, every pack has --seq-length; leave it out")
        if self.weights is not None:
            raise ConfigError("--length-grouped does not go with weights in --data-path; give the prefixes alone")
        return LengthGroupedOrder(self.lengths(), batch, seed)

    def order(self, seed: int, shuffle: bool = True, round_up_to: int | None = None) -> SampleOrder:
        """The order in which this split is trained.

        Args:
            seed: of the run.
            shuffle: False under --no-shuffle.
            round_up_to: the unit of the order under --padded-samples, else None.
        """
        sizes = [len(component.packs) for component in self.components]
        if len(sizes) == 1:
            return PackOrder(sizes[0], seed, shuffle, round_up_to)
        if self.weights is None:
            return MergedOrder(sizes, seed, shuffle, round_up_to)
        return BlendOrder(sizes, self.weights, seed, shuffle, round_up_to)
