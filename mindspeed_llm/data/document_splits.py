"""Divide documents into training, validation and test documents (--split), without an array of all documents.

Each document has a key, a pseudo-random number that depends on the seed and on its number only. In the order of the
keys the documents are cut at the shares of the tokens, so a split is a range of keys. Five documents and --split 60,40:

    document      0    1    2    3    4
    tokens       30   10   20   30   10
    key          .7   .1   .9   .4   .2
    by key        1  4  3 | 0  2                train gets 50 of 100 tokens, valid 50
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mindspeed_llm.data.document_stream import DocumentSelection, EndedDocuments
from mindspeed_llm.data.sample_order import SPLIT_STREAM
from mindspeed_llm.data.seeded_hash import hash_numbers, seed_of
from mindspeed_llm.data.splits import cut_positions

# The highest bits of a key select its bucket; the tokens of each bucket are counted first.
BUCKET_BITS = 16


@dataclass(frozen=True)
class KeyRange:
    """Documents whose key is in a range.

    Attributes:
        seed: seed of the keys, from `seed_of`.
        low: lowest key.
        high: key after the highest, at most 2⁶⁴.
    """

    seed: int
    low: int
    high: int

    def mask(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Return whether documents first … last − 1 belong to the split; bool [last - first]."""
        if self.low >= self.high:
            return np.zeros(last - first, np.bool_)
        if (self.low, self.high) == (0, 1 << 64):
            return np.ones(last - first, np.bool_)
        keys = hash_numbers(self.seed, first, last)
        chosen: npt.NDArray[np.bool_] = (keys >= np.uint64(self.low)) & (keys <= np.uint64(self.high - 1))
        return chosen


@dataclass(frozen=True)
class NumberRange:
    """Documents `first` … `last` − 1."""

    first: int
    last: int

    def mask(self, first: int, last: int) -> npt.NDArray[np.bool_]:
        """Return whether documents first … last − 1 belong to the split; bool [last - first]."""
        numbers = np.arange(first, last)
        chosen: npt.NDArray[np.bool_] = (numbers >= self.first) & (numbers < self.last)
        return chosen


def split_in_file_order(documents: int, shares: Sequence[float]) -> list[DocumentSelection]:
    """Divide documents in file order at the shares of their number, as Megatron does (--split-in-file-order).

    Args:
        documents: number of documents.
        shares: shares of train, valid and test, which sum to 1.
    """
    cuts = cut_positions(documents, shares)
    return [NumberRange(first, last) for first, last in pairwise(cuts)]


def split_by_key(documents: EndedDocuments, shares: Sequence[float], seed: int) -> list[DocumentSelection]:
    """Divide documents in the order of their keys at the shares of their tokens.

    A document belongs to the split that contains the middle of its tokens, so that each split differs from its share by
    at most half of a document at each end.

    Args:
        documents: documents of the files.
        shares: shares of train, valid and test, which sum to 1.
        seed: seed of the run.
    """
    key_seed = seed_of(seed, SPLIT_STREAM)
    sums = np.zeros(1 << BUCKET_BITS, np.int64)
    for first, last in documents.files.index.parts():
        lengths, added = documents.lengths(first, last)
        # The sums of a part are exact in float64, which bincount uses: they are far below 2⁵³.
        buckets = np.bincount(_buckets(key_seed, first, last), lengths + added, len(sums))
        sums += buckets.astype(np.int64)
    reached = np.cumsum(sums)
    total = int(reached[-1])
    targets = [total * sum(shares[: number + 1]) for number in range(len(shares) - 1)]
    # A share of 0 gives no document, whatever the rounding of the sums.
    wanted = {int(np.searchsorted(reached, target, side="right")) for target in targets if 0 < target < total}
    contents = _documents_of_buckets(documents, key_seed, sorted(wanted))
    edges = [0]
    for number, target in enumerate(targets):
        if not any(shares[: number + 1]):
            edges.append(0)
        elif not any(shares[number + 1 :]) or target >= total:
            edges.append(1 << 64)
        else:
            bucket = int(np.searchsorted(reached, target, side="right"))
            before = int(reached[bucket] - sums[bucket])
            edges.append(_edge(*contents[bucket], target - before, bucket))
    edges.append(1 << 64)
    return [KeyRange(key_seed, low, high) for low, high in pairwise(edges)]


def _buckets(seed: int, first: int, last: int) -> npt.NDArray[np.int64]:
    shifted = hash_numbers(seed, first, last) >> np.uint64(64 - BUCKET_BITS)
    return shifted.astype(np.int64)


def _documents_of_buckets(
    documents: EndedDocuments, seed: int, wanted: Sequence[int]
) -> dict[int, tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
    """Return keys, uint64 [documents], and lengths, int64 [documents], of the documents of some buckets by key."""
    found: dict[int, list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]]] = {bucket: [] for bucket in wanted}
    if not found:
        return {}
    for first, last in documents.files.index.parts():
        buckets = _buckets(seed, first, last)
        for bucket, parts in found.items():
            numbers = np.flatnonzero(buckets == bucket)
            if len(numbers):
                lengths, added = documents.lengths(first, last)
                parts.append((hash_numbers(seed, first, last)[numbers], (lengths + added)[numbers]))
    result = {}
    for bucket, parts in found.items():
        keys = np.concatenate([keys for keys, _ in parts])
        order = np.argsort(keys)
        result[bucket] = keys[order], np.concatenate([lengths for _, lengths in parts])[order]
    return result


def _edge(keys: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64], target: float, bucket: int) -> int:
    """Return the first key after the cut at `target` tokens of a bucket."""
    middles = np.cumsum(lengths) - lengths / 2
    number = int(np.searchsorted(middles, target, side="right"))
    return int(keys[number]) if number < len(keys) else (bucket + 1) << (64 - BUCKET_BITS)
