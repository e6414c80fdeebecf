"""The dataset of one split: its packs, which are read from the files column by column on access."""

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

    Each access to `input_ids`, `attention_mask` or `labels` reads the file. A pipeline stage that needs only the
    attention mask therefore reads no other file.

    Attributes:
        files: the packed files that contain the pack.
        number: number of the pack in these files.
        packed: False for files made without --pack.
    """

    files: PackedFiles
    number: int
    packed: bool = True

    @property
    def sample_id(self) -> tuple[str, int]:
        """Prefix of the files and number of the pack."""
        return str(self.files.prefix), self.number

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{'pack' if self.packed else 'sample'} {self.number} of {self.files.prefix}"

    @property
    def length(self) -> int:
        """Number of slots, from the index: no tokens are read."""
        return int(self.files.attention_mask.lengths[self.number])

    @property
    def input_ids(self) -> np.ndarray:
        """Token ids; integers [length]."""
        return self.files.input_ids[self.number]

    @property
    def attention_mask(self) -> np.ndarray:
        """Attention mask; integers [length]. In neat packs, the sample number of each slot, 0 on padding."""
        return self.files.attention_mask[self.number]

    @property
    def labels(self) -> np.ndarray:
        """Labels, not shifted, -100 on slots that are not trained; integers [length]."""
        return self.files.labels[self.number]

    @property
    def slot_padding(self) -> int:
        """Number of slots of padding inside segments, after their samples; 0 without --pad-to-multiple-of."""
        manifest = self.files.manifest
        # Avoids reading all three columns of every pack for data without such padding.
        if manifest is None or manifest.pad_to_multiple_of == 1:
            return 0
        return int(self.files.slot_padding(self.number).sum())


@dataclass(frozen=True)
class DatasetShare:
    """The packs of one dataset that belong to a split.

    Attributes:
        files: packed files of the dataset.
        packs: numbers of the packs of the split in these files; int64 [packs], ascending.
    """

    files: PackedFiles
    packs: np.ndarray


class PackedDataset:
    """One split of one dataset, or of a blend of several datasets.

    Pack numbers are consecutive: first the packs of the first dataset in file order, then those of the second, and so
    on. `order` returns the order in which they are used for training.

    Args:
        components: share of each dataset, with at least one pack each.
        weights: weight of each dataset; None to use every pack once per epoch.
        packed: False for files made without --pack, with one sample per document.
        neat: whether the attention mask numbers the samples.
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
        # side="right", because an end is the number of the first pack of the next dataset.
        which = int(np.searchsorted(self._ends, index, side="right"))
        component = self.components[which]
        first = int(self._ends[which]) - len(component.packs)
        return Pack(component.files, int(component.packs[index - first]), self.packed)

    def sample_id(self, index: int) -> tuple[str, int]:
        """Return the prefix of the files and the number, in these files, of pack `index` of the split."""
        return self[index].sample_id

    @property
    def sources(self) -> tuple[str, ...]:
        """Prefix of each data set, as in the sample ids."""
        return tuple(dict.fromkeys(str(component.files.prefix) for component in self.components))

    def lengths(self) -> np.ndarray:
        """Return the number of slots of every pack, from the indexes; int32 [packs]."""
        return np.concatenate([c.files.attention_mask.lengths[c.packs] for c in self.components])

    def length_grouped_order(self, seed: int, batch: int) -> SampleOrder:
        """Return an order in groups of samples of similar lengths (--length-grouped).

        Args:
            seed: seed of the run.
            batch: samples per group.

        Raises:
            ConfigError: The files are packed, or the datasets have weights.
        """
        if self.packed:
            raise ConfigError(
                "--length-grouped: the files are packed, so all packs have the same length; remove the flag"
            )
        if self.weights is not None:
            raise ConfigError(
                "--length-grouped does not support weights in --data-path; give the prefixes without weights"
            )
        return LengthGroupedOrder(self.lengths(), batch, seed)

    def order(self, seed: int, shuffle: bool = True, round_up_to: int | None = None) -> SampleOrder:
        """Return the order in which the packs of this split are used.

        Args:
            seed: seed of the run.
            shuffle: False with --no-shuffle.
            round_up_to: unit, in packs, to which each epoch is rounded up with --padded-samples, else None.
        """
        sizes = [len(component.packs) for component in self.components]
        # The weight of a single dataset has no effect.
        if len(sizes) == 1:
            return PackOrder(sizes[0], seed, shuffle, round_up_to)
        if self.weights is None:
            return MergedOrder(sizes, seed, shuffle, round_up_to)
        return BlendOrder(sizes, self.weights, seed, shuffle, round_up_to)
