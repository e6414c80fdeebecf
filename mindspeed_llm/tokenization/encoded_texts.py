"""The token ids of several texts in one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class EncodedTexts:
    """The token ids of several texts, one after the other.

        texts    "hello world"  ""  "hi"
        ids        5 6               7
        bounds   0             2   2     3

    Attributes:
        ids: token ids, int32 [tokens].
        bounds: index in `ids` of the first token of each text, and the end, int64 [texts + 1].
    """

    ids: Ids
    bounds: NDArray[np.int64]

    @classmethod
    def of_lists(cls, lists: Iterable[Iterable[int]]) -> EncodedTexts:
        """Join the ids of each text, given as lists or arrays [tokens]."""
        given = [entry if hasattr(entry, "__len__") else list(entry) for entry in lists]
        bounds = np.fromiter(accumulate(map(len, given), initial=0), np.int64, len(given) + 1)
        return cls(np.fromiter(chain.from_iterable(given), np.int32, int(bounds[-1])), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Ids:
        """Return the ids of one text, int32 [tokens], as a view."""
        return self.ids[self.bounds[index] : self.bounds[index + 1]]

    def __iter__(self) -> Iterator[Ids]:
        return (self[index] for index in range(len(self)))

    def gathered(self, numbers: NDArray[np.int64]) -> tuple[Ids, NDArray[np.int64]]:
        """Return the ids of the texts `numbers`, one after the other, and the number of tokens of each.

        Args:
            numbers: indices of texts, int64 [parts], in any order and with repetitions.

        Returns:
            ids, int32 [tokens], and sizes, int64 [parts].
        """
        starts = self.bounds[numbers]
        sizes = self.bounds[numbers + 1] - starts
        before = np.cumsum(sizes) - sizes
        # Token n of the result is token n - before + start of `ids`.
        return self.ids[np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))], sizes
