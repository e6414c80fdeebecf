"""Run the inner loop of the packing algorithm.

The loop draws lengths instead of samples: samples of equal length are interchangeable, so a pack is planned as a list
of lengths, and `packing_algorithm` chooses the samples at the end. It is plain Python on lists, one to two microseconds
per sample. NumPy cannot run it, because each draw depends on those before.
"""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class RemainingLengths:
    """The lengths of the samples that are not packed yet.

    The state is two small tables [capacity + 1] for any number of samples:

        left[x]   number of samples of length x that are not packed yet
        below[x]  parent of x in a disjoint-set forest. A root points at itself. The root of x is the largest length
                  <= x of which a sample is left; 0 means none. This works because a length that is used up never
                  returns.

        lengths 1 1 3 5, capacity 5        x        0  1  2  3  4  5
                                           left     0  2  0  1  0  1
                                           below    0  1  1  3  3  5
        after taking the sample of 3       below    0  1  1  2  3  5        largest length <= 4: 4 → 3 → 2 → 1

    Args:
        counts: number of samples of each length, integers [capacity + 1].
    """

    def __init__(self, counts: npt.NDArray[Any]) -> None:
        self.left: list[int] = counts.tolist()
        self._below: list[int] = np.maximum.accumulate(np.where(counts > 0, np.arange(len(counts)), 0)).tolist()

    def largest(self, limit: int) -> int:
        """Return the largest length <= `limit` of which a sample is left; 0 if there is none."""
        below = self._below
        # Path halving: each search shortens the path for the next ones.
        while (parent := below[limit]) != limit:
            below[limit] = limit = below[parent]
        return limit

    def take(self, length: int) -> None:
        """Remove one sample of `length`."""
        self.left[length] -= 1
        if self.left[length] == 0:
            self._below[length] = length - 1

    def closing_length(self, space: int, longest: int, tries: int) -> int:
        """Return the length to put into a pack next, so that it and one more length fill the remaining space best.

        Args:
            space: free slots of the pack.
            longest: maximum length.
            tries: maximum number of candidates, from the largest that fits downwards; 1 is plain best fit.

        Returns:
            A length; 0 if no remaining length fits.
        """
        length = self.largest(min(space, longest))
        if tries == 1:
            return length
        best, best_sum = length, 0
        while length > 0 and tries > 0:
            other = self.largest(min(space - length, longest))
            # The same length twice needs two samples of it.
            if other == length and self.left[length] == 1:
                other = self.largest(length - 1)
            if length + other > best_sum:
                best, best_sum = length, length + other
                if best_sum == space:
                    break
            tries -= 1
            length = self.largest(length - 1)
        return best


class FillSettings(NamedTuple):
    """How `fill_packs` mixes lengths.

    Attributes:
        spread: the large lengths open packs evenly over the first `spread` packs.
        draw_while: a pack draws at random while it has more free slots than this; then best fit closes it.
        draw_more_while: the same, but lower, used while the packs so far hold fewer samples per token than `pace`.
        pace: target of samples per token.
        tries: see `RemainingLengths.closing_length`.
    """

    spread: int
    draw_while: int
    draw_more_while: int
    pace: float
    tries: int


def fill_packs(
    large: npt.NDArray[Any], small: npt.NDArray[Any], remaining: RemainingLengths, capacity: int, settings: FillSettings
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Fill one pack after the other.

    Args:
        large: lengths above half the capacity, in random order, integers [large samples].
        small: the other lengths, in random order, integers [small samples].
        remaining: all of them; empty afterwards.
        capacity: slots of a pack.
        settings: how lengths are mixed.

    Returns:
        The lengths, pack after pack, int64 [samples], and the offset of each pack in them, int64 [packs + 1].
    """
    spread, draw_while, draw_more_while, pace, tries = settings
    left, take, closing_length = remaining.left, remaining.take, remaining.closing_length
    # These memoryviews return Python integers without a list of them.
    larges, smalls = large.data, small.data
    opened, drawn, half = 0, 0, capacity // 2
    lengths, starts, tokens = array("q"), array("q"), 0
    while len(lengths) < len(larges) + len(smalls):
        # Best fit may have used up a length that `smalls` still contains: such entries are skipped.
        while drawn < len(smalls) and left[smalls[drawn]] == 0:
            drawn += 1
        close_at = draw_more_while if len(lengths) < tokens * pace else draw_while
        space = capacity
        is_due = opened * spread <= len(starts) * len(larges)  # opened / large <= packs / spread, in integers
        starts.append(len(lengths))
        # Without small lengths left, large ones open all packs.
        if opened < len(larges) and (is_due or drawn == len(smalls)):
            length = larges[opened]
            take(length)
            lengths.append(length)
            space -= length
            opened += 1
        while space > close_at:
            while drawn < len(smalls) and left[smalls[drawn]] == 0:
                drawn += 1
            if drawn == len(smalls) or smalls[drawn] > space:
                break
            length = smalls[drawn]
            take(length)
            lengths.append(length)
            space -= length
            drawn += 1
        # Lengths above half the capacity are excluded: each of them opens a pack.
        while space > 0 and (length := closing_length(space, half, tries)):
            take(length)
            lengths.append(length)
            space -= length
        tokens += capacity - space
    starts.append(len(lengths))
    return np.frombuffer(lengths, np.int64), np.frombuffer(starts, np.int64)
