"""Tokens of all samples on disk until the packs are planned, so that memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.tokens.samples import TokenBatch
from mindspeed_llm.tokens.tokenizer import Ids


class TokenStore:
    """Two files of int32, ids and labels, sample after sample; lengths stay in memory (4 bytes a sample).

    Args:
        folder: an empty folder of the caller, who also removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / "ids", folder / "labels")
        self._files = tuple(path.open("wb", buffering=1 << 20) for path in self._paths)
        self._lengths: list[NDArray[np.int32]] = []
        self._views: tuple[Ids, Ids] | None = None

    def append(self, batch: TokenBatch) -> None:
        """Write the samples of `batch` after those before."""
        for file, tokens in zip(self._files, (batch.ids, batch.labels), strict=True):
            file.write(tokens.data)
        self._lengths.append(batch.lengths)

    def finish(self) -> NDArray[np.int32]:
        """End the writing; the length of every sample."""
        self.close()
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        self._lengths = [lengths]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        if self._starts[-1]:
            ids, labels = (np.memmap(path, np.int32, "r") for path in self._paths)
            self._views = (ids, labels)
        return lengths

    def samples(self, numbers: NDArray[np.int64]) -> Iterator[tuple[Ids, Ids]]:
        """(ids, labels) of the samples with these numbers; after `finish`."""
        assert self._views is not None
        ids, labels = self._views
        for start, end in zip(self._starts[numbers].tolist(), self._starts[numbers + 1].tolist(), strict=True):
            yield ids[start:end], labels[start:end]

    def close(self) -> None:
        for file in self._files:
            file.close()
