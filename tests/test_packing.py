"""The packer: what every plan must be, and how full and how mixed plans are on the distributions that users have."""

from __future__ import annotations

import bisect
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_llm.packing import PackPlan, min_packs, plan_packs
from mindspeed_llm.packing.packing_loops import RemainingLengths

CAPACITY = 4096


def alpaca_like(samples: int, seed: int) -> np.ndarray:
    """Lengths of short instruction data, skewed."""
    drawn = np.random.default_rng(seed).lognormal(np.log(100) - 0.32, 0.8, samples)
    return np.clip(np.rint(drawn), 8, CAPACITY).astype(np.int64)


def sharegpt_like(samples: int, seed: int) -> np.ndarray:
    """Lengths of conversations: many near the capacity."""
    drawn = np.random.default_rng(seed).lognormal(np.log(900) - 0.21, 1.2, samples)
    return np.clip(np.rint(drawn), 16, CAPACITY).astype(np.int64)


def check_plan(made: PackPlan, lengths: np.ndarray, capacity: int) -> None:
    """Every sample in exactly one pack, no pack empty, none above capacity."""
    assert made.order.dtype == made.pack_starts.dtype == np.int64
    assert np.array_equal(np.sort(made.order), np.arange(len(lengths)))
    assert made.pack_starts[0] == 0
    assert made.pack_starts[-1] == len(lengths)
    assert len(made) == 0 or made.samples_per_pack.min() >= 1
    for samples in made:
        assert lengths[samples].sum() <= capacity
    assert len(made) >= min_packs(lengths, capacity)


capacities_and_lengths = st.integers(1, 300).flatmap(
    lambda capacity: st.tuples(
        st.just(capacity),
        st.lists(st.one_of(st.integers(1, capacity), st.integers(1, min(capacity, 8))), max_size=200),
    )
)


@given(capacities_and_lengths, st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_every_sample_is_in_exactly_one_pack(drawn: tuple[int, list[int]], seed: int) -> None:
    capacity, lengths = drawn[0], np.array(drawn[1], np.int64)
    made = plan_packs(lengths, capacity, seed)
    check_plan(made, lengths, capacity)
    again = plan_packs(lengths.astype(np.int32), capacity, seed)
    assert np.array_equal(made.order, again.order)
    assert np.array_equal(made.pack_starts, again.pack_starts)


def test_plans_are_the_same_everywhere() -> None:
    """A recorded plan: a change of it changes the data of every user who packs again with the same seed."""
    made = plan_packs(np.array([5, 1, 2, 3, 3, 1, 1, 8, 4]), 8, 1234)
    assert made.order.tolist() == RECORDED_ORDER
    assert made.pack_starts.tolist() == RECORDED_STARTS


@pytest.mark.parametrize(
    ("capacity", "longest", "digest"),
    [
        (4096, 500, "0ed33eead200b13b"),
        (4096, 4096, "57d5e5d1a42117f6"),
        (64, 20, "8f21faed160d1b2f"),
    ],
)
def test_plans_of_larger_sets_are_the_same_everywhere(capacity: int, longest: int, digest: str) -> None:
    lengths = np.random.default_rng(3).integers(1, longest, 20_000, endpoint=True)
    made = plan_packs(lengths, capacity, 7)
    check_plan(made, lengths, capacity)
    recorded = hashlib.sha256(made.order.astype("<i8").tobytes() + made.pack_starts.astype("<i8").tobytes())
    assert recorded.hexdigest()[:16] == digest


RECORDED_ORDER = [7, 8, 5, 4, 0, 3, 6, 1, 2]
RECORDED_STARTS = [0, 1, 4, 6, 9]


def test_no_samples_make_no_packs() -> None:
    made = plan_packs([], 4096, 0)
    assert len(made) == 0
    assert made.order.size == 0
    assert made.pack_starts.tolist() == [0]


@pytest.mark.parametrize("length", [1, 7, 4096])
def test_one_sample_is_one_pack(length: int) -> None:
    made = plan_packs([length], 4096, 0)
    assert made.order.tolist() == [0]
    assert made.pack_starts.tolist() == [0, 1]


def test_samples_of_exactly_the_capacity_are_one_pack_each() -> None:
    made = plan_packs(np.full(300, 64), 64, 5)
    assert len(made) == 300
    assert made.order.tolist() != list(range(300))


@pytest.mark.parametrize(("length", "in_a_pack"), [(1, 64), (21, 3), (32, 2), (33, 1)])
def test_equal_samples_fill_packs_to_the_last_slot_they_can(length: int, in_a_pack: int) -> None:
    made = plan_packs(np.full(in_a_pack * 10, length), 64, 5)
    assert made.samples_per_pack.tolist() == [in_a_pack] * 10


@pytest.mark.parametrize(
    ("lengths", "capacity", "seed", "message"),
    [
        ([5, 9, 3], 8, 0, "sample 1 has length 9"),
        ([5, 8, 0], 8, 0, "sample 2 has length 0"),
        ([5, -1], 8, 0, "sample 1 has length -1"),
        ([5.0, 3.0], 8, 0, "integers"),
        ([[5], [3]], 8, 0, "one dimension"),
        ([5], 0, 0, "capacity is 0"),
        ([5], 8, -1, "seed is -1"),
    ],
)
def test_wrong_arguments_are_named(lengths: list[int], capacity: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_packs(lengths, capacity, seed)


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_alpaca_like_packs_are_full_and_mixed(seed: int) -> None:
    lengths = alpaca_like(52_002, 0)
    made = plan_packs(lengths, CAPACITY, seed)
    check_plan(made, lengths, CAPACITY)
    assert len(made) == 1270  # the least possible: 99.99 % filled
    held = made.samples_per_pack
    assert held.std() / held.mean() <= 0.25
    assert held.max() <= 2 * held.mean()


@pytest.mark.parametrize("seed", [0, 1, 1234])
def test_long_samples_fill_packs_as_best_fit_decreasing_does(seed: int) -> None:
    lengths = sharegpt_like(100_000, 1)
    made = plan_packs(lengths, CAPACITY, seed)
    check_plan(made, lengths, CAPACITY)
    assert len(made) == min_packs(lengths, CAPACITY)
    held = made.samples_per_pack
    assert held.std() / held.mean() <= 0.7  # best-fit decreasing: 1.35
    uniform = np.random.default_rng(2).integers(1, CAPACITY, 100_000, endpoint=True)
    assert len(plan_packs(uniform, CAPACITY, seed)) <= 50_050  # 99.90 %


def test_neither_packs_nor_samples_in_them_follow_their_lengths() -> None:
    lengths = alpaca_like(20_500, 4)
    made = plan_packs(lengths, CAPACITY, 11)
    mean_of_pack = np.array([lengths[samples].mean() for samples in made])
    assert abs(np.corrcoef(np.arange(len(made)), mean_of_pack)[0, 1]) < 0.2
    assert abs(np.corrcoef(np.arange(len(made)), made.samples_per_pack)[0, 1]) < 0.2
    place = np.concatenate([np.linspace(0, 1, len(samples)) for samples in made])
    assert abs(np.corrcoef(place, lengths[made.order])[0, 1]) < 0.03
    assert abs(np.corrcoef(np.arange(len(lengths)), made.order)[0, 1]) < 0.03


def test_the_seed_changes_the_plan() -> None:
    lengths = alpaca_like(1000, 4)
    assert not np.array_equal(plan_packs(lengths, CAPACITY, 1).order, plan_packs(lengths, CAPACITY, 2).order)


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> int:
    """The number of packs of best-fit decreasing, the plain way."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        place = bisect.bisect_left(rooms, length)
        room = rooms.pop(place) if place < len(rooms) else capacity
        bisect.insort(rooms, room - length)
    return len(rooms)


def odd_lengths(kind: int, capacity: int, random: np.random.Generator) -> np.ndarray:
    """A few hundred lengths: any, skewed, of four values only, or between a quarter and half of the capacity."""
    samples = int(random.integers(1, 600))
    if kind == 0:
        return random.integers(1, capacity, samples, endpoint=True)
    if kind == 1:
        drawn = random.lognormal(np.log(capacity / random.integers(2, 30)), random.uniform(0.1, 1.5), samples)
        return np.clip(drawn.astype(np.int64), 1, capacity)
    if kind == 2:
        return random.choice(random.integers(1, capacity, 4, endpoint=True), samples)
    return random.integers(capacity // 4, capacity // 2 + 1, samples)


@pytest.mark.parametrize("capacity", [20, 100, 1000, 4096])
@pytest.mark.parametrize("kind", range(4))
def test_no_more_packs_than_best_fit_decreasing(kind: int, capacity: int) -> None:
    random = np.random.default_rng(100 * kind + capacity)
    for seed in range(25):
        lengths = odd_lengths(kind, capacity, random)
        made = plan_packs(lengths, capacity, seed)
        check_plan(made, lengths, capacity)
        assert len(made) <= best_fit_decreasing(lengths, capacity)


@pytest.mark.parametrize(
    ("lengths", "room", "tries", "best"),
    [
        ([7, 5, 4], 9, 1, 7),  # one try: the largest that fits
        ([7, 5, 4], 9, 2, 5),  # 5 + 4 fill the room
        ([5, 5, 4], 10, 9, 5),  # 5 twice
        ([6, 5, 3, 3], 10, 9, 6),  # 5 is there once: 6 + 3, no pair fills the room
        ([9, 2], 1, 9, 0),
        ([3], 9, 9, 3),
    ],
)
def test_a_pack_is_closed_by_the_best_pair(lengths: list[int], room: int, tries: int, best: int) -> None:
    remaining = RemainingLengths(np.bincount(lengths, minlength=11))
    assert remaining.closing_length(room, 10, tries) == best
