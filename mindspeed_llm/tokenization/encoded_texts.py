"""The token ids of several texts in one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    def of_lists(cls, lists: Iterable[Sequence[int]]) -> EncodedTexts:
        """Join the ids of each text, given as lists [tokens]."""
        given = list(lists)
        bounds = np.fromiter(accumulate(map(len, given), initial=0), np.int64, len(given) + 1)
        return cls(np.fromiter(chain.from_iterable(given), np.int32, int(bounds[-1])), bounds)

    @classmethod
    def of_arrays(cls, arrays: Sequence[Ids]) -> EncodedTexts:
        """Join the ids of each text, given as arrays, int32 [tokens]."""
        bounds = np.fromiter(accumulate(map(len, arrays), initial=0), np.int64, len(arrays) + 1)
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> Ids:
        """Return the ids of one text, int32 [tokens], as a view."""
        return self.ids[self.bounds[index] : self.bounds[index + 1]]

    def __iter__(self) -> Iterator[Ids]:
        return (self[index] for index in range(len(self)))

    def extended(self, lists: Sequence[Sequence[int]]) -> EncodedTexts:
        """Return these texts, followed by others whose ids [tokens] are given."""
        more = EncodedTexts.of_lists(lists)
        bounds = np.concatenate([self.bounds, self.bounds[-1] + more.bounds[1:]])
        return EncodedTexts(np.concatenate([self.ids, more.ids]), bounds)

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


@dataclass(frozen=True)
class TokenOffsets:
    """The tokens of a text with their character offsets.

        text      hello €                   € is one character of three bytes, here one token each
        tokens    hello   space  E2 82 AC
        starts      0        5      6  6  6
        ends        5        6      7  7  7

    Attributes:
        ids: token ids, int32 [tokens].
        starts: offset of the first character of each token, int64 [tokens].
        ends: offset after the last character of each token, int64 [tokens].
    """

    ids: Ids
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def is_clean_cut(self, token: int) -> bool:
        """Return whether the tokens can be cut before index `token` without splitting a character."""
        return token in (0, len(self.ids)) or bool(self.starts[token] >= self.ends[token - 1])


@dataclass(frozen=True)
class EncodedTextsWithOffsets:
    """The tokens of several texts, one after the other, with the character offsets of each token in its text.

    Attributes:
        texts: ids and bounds.
        starts: offset of the first character of each token, int64 [tokens].
        ends: offset after the last character of each token, int64 [tokens].
    """

    texts: EncodedTexts
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def of_texts(cls, texts: Sequence[TokenOffsets]) -> EncodedTextsWithOffsets:
        """Join the tokens of each text."""
        none = np.zeros(0, np.int64)
        starts, ends = ([none, *(getattr(text, name) for text in texts)] for name in ("starts", "ends"))
        encoded = EncodedTexts.of_arrays([text.ids for text in texts])
        return cls(encoded, np.concatenate(starts), np.concatenate(ends))

    def __getitem__(self, index: int) -> TokenOffsets:
        """Return the tokens of one text."""
        first, last = self.texts.bounds[index : index + 2]
        return TokenOffsets(self.texts[index], self.starts[first:last], self.ends[first:last])
