"""Run the inner loops of the packing algorithm, compiled by numba.

Importing this module imports numba. The first call in an installation compiles for about a second; the machine code
is then cached beside this file. A million lengths take 0.6 s of processor time with the import, 2 s with the
compilation as well, and 4 s in plain Python.

The loops draw lengths instead of samples. Samples of equal length are interchangeable, so a pack is planned as a list
of lengths, and `place_samples` chooses the samples at the end. The state is two small tables [capacity + 1], which fit
into the processor's cache for any number of samples:

    left[x]   number of samples of length x that are not packed yet
    below[x]  parent of x in a disjoint-set forest. A root points at itself. The root of x is the largest length <= x of
              which a sample is left; 0 means none. This works because a length that is used up never returns.

    lengths 1 1 3 5, capacity 5        x        0  1  2  3  4  5
                                       left     0  2  0  1  0  1
                                       below    0  1  1  3  3  5
    after taking the sample of 3       below    0  1  1  2  3  5        largest length <= 4: 4 → 3 → 2 → 1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Ints = Any  # an integer array; numba infers the type
Function = TypeVar("Function", bound=Callable[..., Any])


def compile_lazily(function: Function) -> Function:
    """Compile `function` on its first call; cache the machine code if the directory of the package is writable."""
    try:
        compiled: Any = numba.njit(function, cache=True)
    except RuntimeError:  # numba found no writable directory for its cache: every process compiles
        compiled = numba.njit(function)
    result: Function = compiled
    return result


@compile_lazily
def largest_remaining(below: Ints, limit: int) -> int:
    """Return the largest length <= `limit` of which a sample is left; 0 if there is none."""
    # Path halving: each search shortens the path for the next ones.
    while below[limit] != limit:
        below[limit] = below[below[limit]]
        limit = below[limit]
    return limit


@compile_lazily
def take_sample(left: Ints, below: Ints, length: int) -> None:
    """Remove one sample of `length` from the tables."""
    left[length] -= 1
    if left[length] == 0:
        below[length] = length - 1


@compile_lazily
def closing_length(left: Ints, below: Ints, space: int, longest: int, tries: int) -> int:
    """Return the length to put into a pack next, so that it and one more length fill the remaining space best.

    Args:
        left: see the docstring of the module [capacity + 1].
        below: see the docstring of the module [capacity + 1].
        space: free slots of the pack.
        longest: maximum length.
        tries: maximum number of candidates, from the largest that fits downwards; 1 is plain best fit.

    Returns:
        A length; 0 if no remaining length fits.
    """
    length = largest_remaining(below, min(space, longest))
    best, best_sum = length, 0
    while length > 0 and tries > 0:
        other = largest_remaining(below, min(space - length, longest))
        # The same length twice needs two samples of it.
        if other == length and left[length] == 1:
            other = largest_remaining(below, length - 1)
        if length + other > best_sum:
            best, best_sum = length, length + other
            if best_sum == space:
                break
        tries -= 1
        length = largest_remaining(below, length - 1)
    return best


@compile_lazily
def fill_packs(
    large: Ints,
    small: Ints,
    capacity: int,
    spread: int,
    draw_while: int,
    draw_more_while: int,
    pace: float,
    tries: int,
    left: Ints,
    below: Ints,
    lengths_out: Ints,
    starts_out: Ints,
) -> int:
    """Fill one pack after the other.

    Args:
        large: lengths above half the capacity, in random order.
        small: the other lengths, in random order.
        capacity: slots of a pack.
        spread: the large lengths open packs evenly over the first `spread` packs.
        draw_while: a pack draws at random while it has more free slots than this; then best fit closes it.
        draw_more_while: the same, but lower, used while the packs so far hold fewer samples per token than `pace`.
        pace: target of samples per token.
        tries: see `closing_length`.
        left: see the docstring of the module [capacity + 1]; all 0 afterwards.
        below: see the docstring of the module [capacity + 1]; modified.
        lengths_out: receives the lengths [samples], pack after pack.
        starts_out: receives the offset of each pack [packs + 1]; has space for [samples + 1].

    Returns:
        The number of packs.
    """
    total, half = len(large) + len(small), capacity // 2
    packs, packed, tokens, opened, drawn = 0, 0, 0, 0, 0
    while packed < total:
        while drawn < len(small) and left[small[drawn]] == 0:
            drawn += 1
        starts_out[packs] = packed
        space = capacity
        close_at = draw_more_while if packed < tokens * pace else draw_while
        # opened / len(large) <= packs / spread in integers. Without small lengths left, large ones open all packs.
        if opened < len(large) and (drawn == len(small) or opened * spread <= packs * len(large)):
            take_sample(left, below, large[opened])
            lengths_out[packed] = large[opened]
            space -= large[opened]
            opened, packed = opened + 1, packed + 1
        packs += 1
        while space > close_at:
            # Best fit may have used up a length that `small` still contains: skip such entries.
            while drawn < len(small) and left[small[drawn]] == 0:
                drawn += 1
            if drawn == len(small) or small[drawn] > space:
                break
            take_sample(left, below, small[drawn])
            lengths_out[packed] = small[drawn]
            space -= small[drawn]
            drawn, packed = drawn + 1, packed + 1
        # Lengths above half the capacity are excluded: each of them opens a pack.
        while space > 0:
            length = closing_length(left, below, space, half, tries)
            if length == 0:
                break
            take_sample(left, below, length)
            lengths_out[packed] = length
            space -= length
            packed += 1
        tokens += capacity - space
    starts_out[packs] = packed
    return packs


@compile_lazily
def place_samples(
    by_length: Ints,
    next_of: Ints,
    lengths: Ints,
    starts: Ints,
    pack_order: Ints,
    draws: Ints,
    order_out: Ints,
    starts_out: Ints,
) -> None:
    """Replace the lengths of a plan by samples of these lengths, in random order of packs and inside of packs.

    Args:
        by_length: sample numbers [samples], grouped by length, in random order within a length.
        next_of: offset of each length's group in `by_length` [capacity + 1]; modified.
        lengths: lengths of the plan [samples], pack after pack.
        starts: offset of each pack in `lengths` [packs + 1].
        pack_order: a permutation of the packs [packs].
        draws: random numbers below 2**32 [samples].
        order_out: receives the sample numbers [samples], pack after pack.
        starts_out: receives the offset of each pack in `order_out` [packs + 1].
    """
    placed = 0
    for number in range(len(pack_order)):
        pack = pack_order[number]
        starts_out[number] = placed
        for planned in range(starts[pack], starts[pack + 1]):
            length = lengths[planned]
            # Fisher-Yates shuffle, inside out: the sample takes a random position among the samples of its pack so far,
            # and the sample at that position moves to the end. The product and shift scale a draw to [0, inside].
            inside = planned - starts[pack]
            chosen = placed + ((draws[planned] * (inside + 1)) >> 32)
            order_out[placed + inside] = order_out[chosen]
            order_out[chosen] = by_length[next_of[length]]
            next_of[length] += 1
        placed += starts[pack + 1] - starts[pack]
    starts_out[len(pack_order)] = placed


@compile_lazily
def group_by_length(shuffled: Ints, lengths: Ints, next_of: Ints, by_length: Ints) -> None:
    """Group sample numbers by length, keeping their order within a length.

    Args:
        shuffled: sample numbers [samples].
        lengths: their lengths [samples].
        next_of: offset of each length's group in `by_length` [capacity + 1]; afterwards the end of the group.
        by_length: receives the grouped sample numbers [samples].
    """
    for number in range(len(shuffled)):
        length = lengths[number]
        by_length[next_of[length]] = shuffled[number]
        next_of[length] += 1
