"""Pseudo-random numbers and permutations that are computed for a single index, without an array of all of them.

Source: the mixing function is that of SplitMix64 (Steele, Lea, Flood 2014); the permutation is a Feistel network whose
result is applied again while it is outside of the range (Black, Rogaway 2002, "cycle walking"). Both give the same
values on every platform and in every version of numpy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def seed_of(*seeds: int) -> int:
    """Return a seed of 64 bits for a purpose.

    Args:
        *seeds: seed of the run, and numbers that identify the purpose.
    """
    # numpy guarantees the stream of SeedSequence in all versions.
    return int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0])


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return different pseudo-random numbers for different numbers; uint64 [n] → uint64 [n]."""
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def hash_numbers(seed: int, first: int, last: int) -> npt.NDArray[np.uint64]:
    """Return a pseudo-random key for each of the numbers first … last − 1; all keys differ; uint64 [last - first]."""
    numbers = np.arange(first, last, dtype=np.uint64)
    return mix((numbers + np.uint64(1)) * _GOLDEN + np.uint64(seed & _MASK))


class IndexPermutation:
    """A permutation of 0 … n − 1 that depends only on `seeds` and n; memory does not depend on n.

    Args:
        n: number of elements, at least 1.
        *seeds: seed of the run, and numbers that identify the purpose of the permutation.
    """

    def __init__(self, n: int, *seeds: int) -> None:
        assert n >= 1
        self.n = n
        # Two halves of equal size: the network permutes at most 4 n numbers, 16 at least.
        self._half = max(2, -(-(n - 1).bit_length() // 2))
        keys = np.random.SeedSequence([*seeds, n]).generate_state(ROUNDS, np.uint64)
        self._keys = [np.uint64(key) for key in keys]

    def __call__(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the elements at some indices; int64 [count] → int64 [count]."""
        values = self._network(indices.astype(np.uint64))
        outside = np.flatnonzero(values >= self.n)
        while len(outside):
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.n]
        return values.astype(np.int64)

    def _network(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        bits = np.uint64(self._half)
        mask = np.uint64((1 << self._half) - 1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (mix(right * _GOLDEN + key) & mask)
        return (left << bits) | right
