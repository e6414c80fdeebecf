"""The inner loops of the packer, compiled by numba.

Importing this module imports numba, and the first call in an installation compiles for about a second; the machine
code is then cached beside this file. A million lengths take 0.6 s of processor time with the import, 2 s with the
compilation as well, and 4 s in plain Python.

Lengths are drawn, not samples: samples of equal length are interchangeable, so a pack is planned as a list of
lengths, and which sample stands for each of them is decided last (`place_samples`). What is left to pack is then
one small table, that fits the cache, whatever the number of samples:

    left[x]   how many samples of length x are not packed yet
    below[x]  where to look for the largest length <= x that is still there: a disjoint-set forest, because
              lengths only ever run out. A length that is there points at itself; 0 stands for 'none'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Ints = Any  # an integer array
Function = TypeVar("Function", bound=Callable[..., Any])


def compile_lazily(function: Function) -> Function:
    """Compile `function` on its first call; cache the machine code where the package's directory is writable."""
    try:
        made: Any = numba.njit(function, cache=True)
    except RuntimeError:  # numba finds no writable directory for the cache: compile in every process
        made = numba.njit(function)
    result: Function = made
    return result


@compile_lazily
def largest_remaining(below: Ints, limit: int) -> int:
    """The largest length <= `limit` of which a sample is left; 0 if there is none."""
    while below[limit] != limit:
        below[limit] = below[below[limit]]
        limit = below[limit]
    return limit


@compile_lazily
def take_sample(left: Ints, below: Ints, length: int) -> None:
    """Take one sample of `length` out of what is left."""
    left[length] -= 1
    if left[length] == 0:
        below[length] = length - 1


@compile_lazily
def closing_length(left: Ints, below: Ints, room: int, longest: int, tries: int) -> int:
    """The length <= `longest` to put into `room` next, so that it and one more fill the room best; 0: nothing fits.

    Looks at no more than `tries` lengths, from the largest that fits downwards; tries = 1 is plain best fit.
    """
    length = largest_remaining(below, min(room, longest))
    best, best_sum = length, 0
    while length > 0 and tries > 0:
        other = largest_remaining(below, min(room - length, longest))
        if other == length and left[length] == 1:
            other = largest_remaining(below, length - 1)
        if length + other > best_sum:
            best, best_sum = length, length + other
            if best_sum == room:
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
    """Fill packs one after the other; the number of packs.

    Args:
        large, small: the lengths above half the capacity, and the others, both in random order.
        spread: the large ones open packs evenly over the first `spread` packs.
        draw_while: a pack draws at random while it has more room than this, then it is closed by best fit.
        draw_more_while: the same, and less, while the packs so far hold fewer samples than `pace` asks for.
        pace: samples per token that the packs should hold while they are filled.
        tries: see `closing_length`.
        left, below: the tables at the head of this file; used up.
        lengths_out, starts_out: receive the lengths, pack after pack, and where each pack starts.
    """
    total, half = len(large) + len(small), capacity // 2
    packs, made, tokens, opened, drawn = 0, 0, 0, 0, 0
    while made < total:
        while drawn < len(small) and left[small[drawn]] == 0:
            drawn += 1
        starts_out[packs] = made
        room = capacity
        close_at = draw_more_while if made < tokens * pace else draw_while
        if opened < len(large) and (drawn == len(small) or opened * spread <= packs * len(large)):
            take_sample(left, below, large[opened])
            lengths_out[made] = large[opened]
            room -= large[opened]
            opened, made = opened + 1, made + 1
        packs += 1
        while room > close_at:
            # The n-th draw of a length takes its n-th sample, unless best fit has taken it from the other end.
            while drawn < len(small) and left[small[drawn]] == 0:
                drawn += 1
            if drawn == len(small) or small[drawn] > room:
                break
            take_sample(left, below, small[drawn])
            lengths_out[made] = small[drawn]
            room -= small[drawn]
            drawn, made = drawn + 1, made + 1
        while room > 0:
            length = closing_length(left, below, room, half, tries)
            if length == 0:
                break
            take_sample(left, below, length)
            lengths_out[made] = length
            room -= length
            made += 1
        tokens += capacity - room
    starts_out[packs] = made
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
    """Put samples in the places of their lengths, packs in `pack_order`, the samples of each pack shuffled.

    Args:
        by_length: sample numbers, grouped by length, in random order within a length.
        next_of: for each length, where its group starts in `by_length`; used up.
        lengths, starts, pack_order: the plan of `fill_packs`, and the order in which its packs are to stand.
        draws: one random number below 2**32 for each place.
        order_out, starts_out: receive the sample numbers, pack after pack, and where each pack starts.
    """
    made = 0
    for number in range(len(pack_order)):
        pack = pack_order[number]
        starts_out[number] = made
        for place in range(starts[pack], starts[pack + 1]):
            length = lengths[place]
            # Fisher and Yates, inside out: the sample goes to a random place among those of its pack so far.
            held = place - starts[pack]
            chosen = made + ((draws[place] * (held + 1)) >> 32)
            order_out[made + held] = order_out[chosen]
            order_out[chosen] = by_length[next_of[length]]
            next_of[length] += 1
        made += starts[pack + 1] - starts[pack]
    starts_out[len(pack_order)] = made


@compile_lazily
def group_by_length(shuffled: Ints, lengths: Ints, next_of: Ints, by_length: Ints) -> None:
    """Sort the sample numbers `shuffled` by their lengths, keeping their order within a length.

    `next_of` holds where each length's group starts; afterwards, where it ends.
    """
    for number in range(len(shuffled)):
        length = lengths[number]
        by_length[next_of[length]] = shuffled[number]
        next_of[length] += 1
