"""Tokens of all samples on disk until the packs are planned, so that memory does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mindspeed_llm.tokens.samples import TokenBatch
from mindspeed_llm.tokens.tokenizer import Ids

BYTES = 4  # of a token


class TokenStore:
    """Two files of int32, ids and labels, sample after sample; lengths stay in memory (4 bytes a sample).

    Args:
        folder: an empty folder of the caller, who also removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / "ids", folder / "labels")
        self._files: list[BinaryIO] = [path.open("wb", buffering=1 << 20) for path in self._paths]
        self._lengths: list[NDArray[np.int32]] = []
        self._starts = np.zeros(1, np.int64)

    def append(self, batch: TokenBatch) -> None:
        """Write the samples of `batch` after those before."""
        for file, tokens in zip(self._files, (batch.ids, batch.labels), strict=True):
            file.write(tokens.data)
        self._lengths.append(batch.lengths)

    def finish(self) -> NDArray[np.int32]:
        """End the writing and begin the reading; the length of every sample."""
        self.close()
        # Read, not mapped: the pages of a mapping count as memory of this process.
        self._files = [path.open("rb", buffering=0) for path in self._paths]
        lengths = np.concatenate([np.zeros(0, np.int32), *self._lengths])
        self._lengths = []
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return lengths

    def samples(self, numbers: NDArray[np.int64]) -> Iterator[tuple[Ids, Ids]]:
        """(ids, labels) of the samples with these numbers; after `finish`."""
        starts, ends = BYTES * self._starts[numbers], BYTES * self._starts[numbers + 1]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            ids, labels = (self._read(file, start, end) for file in self._files)
            yield ids, labels

    def _read(self, file: BinaryIO, start: int, end: int) -> Ids:
        file.seek(start)
        data = file.read(end - start)
        assert len(data) == end - start, "the store was cut short while in use"
        return np.frombuffer(data, np.int32)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
