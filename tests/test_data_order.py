"""Splits, epochs and blends: which pack comes when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_llm.data import blending
from mindspeed_llm.data.blending import BlendOrder, MergedOrder, blend_indices, parse_blend
from mindspeed_llm.data.sample_order import PackOrder, SampleOrder, seeded_permutation
from mindspeed_llm.data.splits import split_packs
from mindspeed_llm.errors import ConfigError, DataError


def all_orders(seed: int, shuffle: bool, round_up_to: int | None) -> list[SampleOrder]:
    return [
        PackOrder(7, seed, shuffle, round_up_to),
        MergedOrder([4, 1, 6], seed, shuffle, round_up_to),
        BlendOrder([4, 1, 6], [0.5, 0.2, 0.3], seed, shuffle, round_up_to),
    ]


def test_permutation_stays_the_same_in_every_version_of_numpy() -> None:
    # A resumed run depends on it: written down, not computed.
    assert seeded_permutation(8, 1234, 2, 0, 0).tolist() == [5, 0, 4, 2, 3, 6, 1, 7]


@given(n=st.integers(1, 300), words=st.lists(st.integers(0, 2**32), max_size=3))
def test_permutation_has_every_number_once(n: int, words: list[int]) -> None:
    assert sorted(seeded_permutation(n, *words).tolist()) == list(range(n))


# splits


@given(
    n=st.integers(0, 2000),
    split=st.tuples(*[st.integers(0, 1000)] * 3).filter(lambda split: sum(split) > 0),
    seed=st.integers(0, 10),
)
def test_a_pack_is_in_one_split_and_shares_are_megatrons(n: int, split: tuple[int, int, int], seed: int) -> None:
    parts = split_packs(n, split, seed, needed=())
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    assert all((np.diff(part) > 0).all() for part in parts)
    ends = np.cumsum(split) / sum(split) * n
    assert abs(len(parts[0]) - ends[0]) <= 0.5 + 1e-6
    assert abs(len(parts[0]) + len(parts[1]) - ends[1]) <= 0.5 + 1e-6


def test_splits_are_cut_where_megatron_cuts_them() -> None:
    from megatron.core.datasets.blended_megatron_dataset_config import convert_split_vector_to_split_matrix as matrix
    from megatron.core.datasets.blended_megatron_dataset_config import parse_and_normalize_split

    for n in (1, 45, 49, 52, 1264):
        for text in ("949,50,1", "90,5,5", "100,0,0", "969,30,1", "8,1,1"):
            split = tuple(float(share) for share in text.split(","))
            sizes = [len(part) for part in split_packs(n, split, seed=1, needed=())]
            theirs = [
                round(ends[1] * n) - round(ends[0] * n) if ends else 0
                for ends in matrix(parse_and_normalize_split(text))
            ]
            assert sizes == theirs, (n, text)


def test_validation_resembles_training_though_packs_lie_longest_first() -> None:
    mean_sample_length = np.linspace(400, 20, 1000)  # as MindSpeed-LLM writes them
    train, valid, test = split_packs(1000, (90, 5, 5), seed=1234)
    means = [mean_sample_length[part].mean() for part in (train, valid, test)]
    assert max(means) / min(means) < 1.3, means


def test_a_split_left_without_packs_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"--split 949,50,1 leaves no pack for test: .* has 45 packs"):
        split_packs(45, (949, 50, 1), seed=1)
    assert [len(part) for part in split_packs(45, (949, 50, 1), seed=1, needed=("train", "valid"))] == [43, 2, 0]
    with pytest.raises(DataError, match="train and valid"):
        split_packs(0, (9, 1, 0), seed=1)


def test_the_split_depends_on_the_seed() -> None:
    first, again, other = (split_packs(100, (80, 10, 10), seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


# epochs


@given(
    packs=st.integers(1, 40),
    seed=st.integers(0, 5),
    shuffle=st.booleans(),
    round_up_to=st.none() | st.integers(1, 60),
    epochs=st.integers(1, 4),
)
def test_every_epoch_has_every_pack_and_repeats_only_its_first(
    packs: int, seed: int, shuffle: bool, round_up_to: int | None, epochs: int
) -> None:
    order = PackOrder(packs, seed, shuffle, round_up_to)
    length = order.epoch_length
    assert length % (round_up_to or 1) == 0 and packs <= length < packs + (round_up_to or 1)
    line = order.positions(0, epochs * length)
    for epoch in range(epochs):
        part = line[epoch * length : (epoch + 1) * length]
        assert sorted(part[:packs].tolist()) == list(range(packs))
        assert part[packs:].tolist() == np.resize(part[:packs], length)[packs:].tolist()
        assert shuffle or part[:packs].tolist() == list(range(packs))


def test_the_example_of_the_docstring() -> None:
    order = PackOrder(5, seed=1, shuffle=False, round_up_to=4)
    assert order.positions(0, 11).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]
    assert order.epoch_length == 8


def test_without_padding_a_global_batch_spans_two_epochs() -> None:
    order = PackOrder(5, seed=1, shuffle=False)
    assert order.positions(4, 4).tolist() == [4, 0, 1, 2]


def test_epochs_and_seeds_have_different_orders() -> None:
    order = PackOrder(50, seed=1)
    first, second = order.positions(0, 50).tolist(), order.positions(50, 50).tolist()
    assert first != second != list(range(50)) != first
    assert PackOrder(50, seed=2).positions(0, 50).tolist() != first


@settings(max_examples=30)
@given(
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
    round_up_to=st.sampled_from([None, 4, 8, 30]),
    cuts=st.lists(st.integers(0, 90), max_size=6),
)
def test_the_order_does_not_depend_on_how_it_is_read(
    seed: int, shuffle: bool, round_up_to: int | None, cuts: list[int]
) -> None:
    """Ranks, micro-batches and a resumed run read other parts of the line in another sequence: the same packs."""
    for whole, fresh in zip(
        all_orders(seed, shuffle, round_up_to), all_orders(seed, shuffle, round_up_to), strict=True
    ):
        line = whole.positions(0, 90)
        for first, last in zip(sorted(cuts), sorted(cuts)[1:], strict=False):
            assert fresh.positions(first, last - first).tolist() == line[first:last].tolist()
        for position in reversed(range(0, 90, 7)):
            assert fresh.positions(position, 1).tolist() == [line[position]]


# blends


def test_blending_follows_the_rule_of_megatron() -> None:
    for weights, sizes in (([0.7, 0.3], [7, 3]), ([0.2, 0.3, 0.5], [10, 1, 9]), ([1.0], [5])):
        for given_sizes in (None, sizes):
            size = sum(sizes)
            shares = [s / size for s in sizes] if given_sizes else weights
            which, nth = np.zeros(size, np.int16), np.zeros(size, np.int64)
            blending._blend_plain(shares, given_sizes, which, nth)
            theirs = blend_indices(shares, size, given_sizes)
            assert which.tolist() == theirs[0].tolist() and nth.tolist() == theirs[1].tolist()


def test_a_weighted_blend_keeps_its_shares_and_runs_through_each_data_set() -> None:
    order = BlendOrder([100, 300], [0.75, 0.25], seed=3)
    line = order.positions(0, 400)
    assert (line < 100).sum() == 300
    assert np.bincount(line[line < 100], minlength=100).tolist() == [3] * 100  # three rounds of the small one
    rest = order.positions(400, 800)
    large = np.concatenate((line, rest))
    assert sorted(large[large >= 100].tolist()) == list(range(100, 400))  # no pack of the large one left out


def test_a_weighted_blend_in_file_order_is_the_docstrings() -> None:
    order = BlendOrder([3, 3], [2 / 3, 1 / 3], seed=1, shuffle=False)
    assert order.positions(0, 9).tolist() == [0, 3, 1, 2, 4, 0, 1, 5, 2]


@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4), shuffle=st.booleans(), seed=st.integers(0, 3))
def test_without_weights_every_pack_comes_once_an_epoch(sizes: list[int], shuffle: bool, seed: int) -> None:
    order = MergedOrder(sizes, seed, shuffle)
    for epoch in range(2):
        assert sorted(order.positions(epoch * sum(sizes), sum(sizes)).tolist()) == list(range(sum(sizes)))


def test_without_weights_file_order_leaves_no_data_set_to_the_end() -> None:
    line = MergedOrder([10, 10], seed=1, shuffle=False).positions(0, 20)
    assert (line[:10] < 10).sum() == 5
    assert line[line < 10].tolist() == list(range(10))


def test_data_paths_are_read_as_megatron_reads_them() -> None:
    assert parse_blend(["a"]).prefixes == ("a",)
    assert parse_blend(["a", "b"]).weights is None
    blend = parse_blend(["30", "a", "10", "b"])
    assert blend.prefixes == ("a", "b") and blend.weights == (0.75, 0.25)


@pytest.mark.parametrize("words", [[], ["0", "a", "1", "b"], ["-1", "a"], ["nan", "a", "1", "b"]])
def test_wrong_data_paths_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="--train-data-path"):
        parse_blend(words, "--train-data-path")
