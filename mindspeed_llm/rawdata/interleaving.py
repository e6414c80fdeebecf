"""Mix several data sets into one stream of rows, in the same order as Hugging Face's datasets.

    a  a0 a1 a2        b  b0 b1

    concat            a0 a1 a2 b0 b1
    interleave_under  a0 b0 a1 b1                in turn, as many rounds as the shortest has rows
    interleave_over   a0 b0 a1 b1 a2 b0          in turn, as many rounds as the longest; the others start again

With probabilities each row comes from a data set that is drawn at random. `under` ends when one of the data sets has
no row left, `over` when each of them has given its last row at least once. The draws are those of
datasets.interleave_datasets for the same seed. Only the next row of each data set is held in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from mindspeed_llm.rawdata.input_files import InputFile
from mindspeed_llm.rawdata.row import ReadPosition, Row
from mindspeed_llm.rawdata.row_reader import read_rows

DRAWS_AT_ONCE = 1000


def interleave_rows(
    sources: Sequence[Sequence[InputFile]],
    strategy: str,
    probabilities: Sequence[float] | None,
    seed: int,
    max_rows: int | None,
    position: ReadPosition,
) -> Iterator[Row]:
    """Yield the rows of all data sets, mixed by a strategy.

    Args:
        sources: files of each data set.
        strategy: 'concat', 'interleave_under' or 'interleave_over'.
        probabilities: probability of each data set; None to take them in turn.
        seed: seed of the random draws.
        max_rows: maximum number of rows of each data set; None for all.
        position: progress, which is updated; a data set that is read again does not count again.

    Raises:
        DataError: see `read_rows`.
    """
    opened = [_Source(files, max_rows, position) for files in sources]
    if strategy == "concat" or len(opened) == 1:
        for source in opened:
            while not source.exhausted:
                yield source.take()
        return
    over = strategy == "interleave_over"
    turns = _drawn(len(opened), probabilities, seed) if probabilities else None
    if turns is None:
        while not (all if over else any)(source.exhausted for source in opened):
            for source in opened:
                yield source.take()
        return
    for number in turns:
        yield opened[number].take()
        if (all if over else any)(source.exhausted for source in opened):
            return


def _drawn(sources: int, probabilities: Sequence[float], seed: int) -> Iterator[int]:
    """Yield the index of the data set of each row."""
    random = np.random.default_rng(seed)
    while True:
        yield from random.choice(sources, size=DRAWS_AT_ONCE, p=probabilities).tolist()


class _Source:
    """The rows of one data set, which starts again after its last row.

    Attributes:
        exhausted: whether its last row has been taken at least once.
    """

    def __init__(self, files: Sequence[InputFile], max_rows: int | None, position: ReadPosition) -> None:
        self._files, self._max_rows, self._total = files, max_rows, position
        self._bytes = 0  # of this data set, as counted in `position`
        self._here = ReadPosition()
        self._rows: Iterator[Row] = iter(())
        self._next: Row | None = None
        self.exhausted = False

    def take(self) -> Row:
        """Return the next row."""
        if self._next is None:
            self._here = ReadPosition()
            self._rows = itertools.islice(read_rows(self._files, self._here), self._max_rows)
            self._next = next(self._rows, None)
        row = self._next
        assert row is not None, "read_rows refuses files without rows"
        # Read one row ahead, so that `exhausted` is known together with the last row.
        self._next = next(self._rows, None)
        self.exhausted |= self._next is None
        if self._here.bytes_read > self._bytes:
            self._total.bytes_read += self._here.bytes_read - self._bytes
            self._bytes = self._here.bytes_read
        return row
