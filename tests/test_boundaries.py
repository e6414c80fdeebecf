"""Boundaries, labels, positions and loss weights of a pack."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_llm.boundaries import (
    IGNORED,
    boundaries_from_end_tokens,
    boundaries_from_neat_mask,
    boundaries_of_one_segment,
    count_trailing,
    padding_after_samples,
    position_ids,
    segment_ends,
    segment_lengths,
    segment_starts,
    shift_labels,
    trailing_padding,
)
from mindspeed_llm.data import loss_weights
from mindspeed_llm.errors import DataError

E, P = 2, 0  # end token, padding token

samples = st.lists(st.integers(1, 9), min_size=0, max_size=8)
paddings = st.integers(0, 7)


def mask_of(lengths: list[int], padding: int) -> np.ndarray:
    numbered = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    return np.array(numbered + [0] * padding, dtype=np.int32)


# segments


def test_starts_and_lengths_follow_from_the_ends() -> None:
    ends = segment_ends(np.array([1, 1, 1, 2, 2, 0]))
    assert ends.tolist() == [3, 5, 6]
    assert segment_starts(ends).tolist() == [0, 3, 5] and segment_lengths(ends.tolist()) == [3, 2, 1]
    assert segment_ends(np.array([True])).tolist() == [1] and segment_ends(np.array([], int)).tolist() == []
    assert segment_lengths((7,)) == [7]


def test_slots_at_the_end_that_are_empty() -> None:
    assert count_trailing(np.array([True, False, True, True])) == 2
    assert count_trailing(np.array([True, True])) == 2 and count_trailing(np.array([], bool)) == 0


def test_padding_of_samples_is_told_from_that_of_the_pack() -> None:
    ids = np.array([5, 7, 2, P, 9, 2, P, P, P, P, P, P])
    mask = np.array([1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0])
    labels = np.where(ids == P, IGNORED, ids)
    assert padding_after_samples(ids, mask, labels, P, 4).tolist() == [1, 2]
    assert padding_after_samples(ids, mask, labels, P, 1).tolist() == [0, 0]
    assert padding_after_samples(ids, mask, labels, None, 4).tolist() == [0, 0]
    labels[3] = P  # a trained token is no padding
    assert padding_after_samples(ids, mask, labels, P, 4).tolist() == [0, 2]


# neat packs


def test_six_tokens_in_three_samples() -> None:
    boundaries = boundaries_from_neat_mask(np.array([1, 1, 1, 2, 2, 3, 0, 0]))
    assert boundaries.ends == (3, 5, 6, 8)
    assert (boundaries.padding, boundaries.samples, boundaries.tokens) == (2, 3, 6)
    labels = np.array([-100, 11, 12, -100, 21, 30, -100, -100])
    assert shift_labels(labels, boundaries.ends).tolist() == [11, 12, -100, 21, -100, -100, -100, -100]
    assert position_ids(boundaries.ends).tolist() == [0, 1, 2, 0, 1, 0, 0, 1]


@given(lengths=samples, padding=paddings)
def test_neat_boundaries_are_the_samples_and_one_run_of_padding(lengths: list[int], padding: int) -> None:
    if not lengths and not padding:
        return
    boundaries = boundaries_from_neat_mask(mask_of(lengths, padding))
    assert np.diff([0, *boundaries.ends]).tolist() == lengths + [padding] * (padding > 0)
    assert (boundaries.padding, boundaries.samples, boundaries.tokens) == (padding, len(lengths), sum(lengths))
    assert all(type(end) is int for end in boundaries.ends)


@pytest.mark.parametrize(
    "mask",
    [
        [2, 2, 3],  # does not begin at 1
        [1, 1, 3, 3],  # skips
        [1, 2, 1],  # falls
        [1, 1, 0, 2, 2],  # padding inside
        [0, 1, 1],  # padding before
        [1, 0, 1],  # one sample in two places
        [1, -1],
    ],
)
def test_a_mask_that_numbers_no_samples_is_refused(mask: list[int]) -> None:
    with pytest.raises(DataError, match="attention_mask is not that of a neat pack: slot"):
        boundaries_from_neat_mask(np.array(mask))


def test_padding_is_one_segment_however_long() -> None:
    # Defect: one segment per padding token, thousands of entries.
    assert boundaries_from_neat_mask(mask_of([3], 4093)).ends == (3, 4096)
    ids = np.array([5, 6, E] + [P] * 4093)
    labels = np.array([-100, 6, E] + [-100] * 4093)
    assert boundaries_from_end_tokens(ids, labels, eod=E, pad=P).ends == (3, 4096)
    assert boundaries_from_end_tokens(np.where(ids == P, E, ids), labels, eod=E, pad=E).ends == (3, 4096)


# plain packs


def test_end_tokens_separate_the_samples_of_a_plain_pack() -> None:
    ids = np.array([5, 6, E, 7, E, P, P])
    labels = np.array([-100, 6, E, -100, E, -100, -100])
    boundaries = boundaries_from_end_tokens(ids, labels, eod=E, pad=P)
    assert boundaries.ends == (3, 5, 7)
    assert (boundaries.padding, boundaries.samples, boundaries.tokens) == (2, 2, 5)


def test_doubled_end_tokens_do_not_merge_what_follows() -> None:
    # Defect: every sample after the first doubled end token became one segment.
    ids = np.array([5, E, E, 6, E, E, 7, 8, E, E])
    assert boundaries_from_end_tokens(ids, ids, eod=E, pad=P).ends == (2, 3, 5, 6, 9, 10)


def test_a_pack_that_ends_inside_a_sample_is_closed() -> None:
    ids = np.array([5, E, 6, 7])
    assert boundaries_from_end_tokens(ids, ids, eod=E, pad=P).ends == (2, 4)
    ids = np.array([5, E, 6, 7, P])
    assert boundaries_from_end_tokens(ids, np.array([5, E, 6, 7, -100]), eod=E, pad=P).ends == (2, 4, 5)


def test_a_trained_end_token_before_padding_of_the_same_id_stays_in_its_sample() -> None:
    ids = np.array([5, 6, E, E, E])
    labels = np.array([-100, 6, E, -100, -100])
    boundaries = boundaries_from_end_tokens(ids, labels, eod=E, pad=E)
    assert boundaries.ends == (3, 5) and boundaries.padding == 2
    assert shift_labels(labels, boundaries.ends).tolist() == [6, E, -100, -100, -100]


def test_a_pack_of_padding_alone_is_one_segment() -> None:
    ids, labels = np.full(4, P), np.full(4, -100)
    for boundaries in (
        boundaries_from_end_tokens(ids, labels, eod=E, pad=P),
        boundaries_of_one_segment(4, 4),
        boundaries_from_neat_mask(np.zeros(4, dtype=np.int32)),
    ):
        assert (boundaries.ends, boundaries.padding, boundaries.samples, boundaries.tokens) == ((4,), 4, 0, 0)


def test_one_causal_sequence_has_its_padding_cut_off() -> None:
    assert boundaries_of_one_segment(6, 0).ends == (6,)
    boundaries = boundaries_of_one_segment(6, 2)
    assert boundaries.ends == (4, 6) and boundaries.samples == 1 and boundaries.tokens == 4


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6), padding=paddings, pad=st.sampled_from([E, P]))
def test_plain_boundaries_equal_neat_ones_where_end_tokens_only_end_samples(
    lengths: list[int], padding: int, pad: int
) -> None:
    ids = [token for length in lengths for token in [*range(10, 9 + length), E]] + [pad] * padding
    labels = [token for length in lengths for token in [*range(10, 9 + length), E]] + [IGNORED] * padding
    plain = boundaries_from_end_tokens(np.array(ids), np.array(labels), eod=E, pad=pad)
    assert plain == boundaries_from_neat_mask(mask_of(lengths, padding))
    assert trailing_padding(np.array(ids), np.array(labels), pad) == padding


# labels and positions


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_labels_never_cross_a_segment_and_none_is_lost_but_the_first(lengths: list[int], data: st.DataObject) -> None:
    size = sum(lengths)
    ends = np.cumsum(lengths)
    trained = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    labels = np.where(trained, np.arange(size) + 1000, IGNORED)  # every label tells its own slot
    shifted = shift_labels(labels, tuple(ends.tolist()))
    segment = np.repeat(np.arange(len(lengths)), lengths)
    starts = ends - lengths
    for slot in np.flatnonzero(shifted != IGNORED):
        assert shifted[slot] == slot + 1001 and segment[slot] == segment[slot + 1]
    assert sorted(shifted[shifted != IGNORED]) == sorted(labels[np.setdiff1d(np.flatnonzero(trained), starts)])


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_positions_restart_in_every_segment(lengths: list[int]) -> None:
    ends = np.cumsum(lengths).tolist()
    assert position_ids(ends).tolist() == [place for length in lengths for place in range(length)]


def test_prompts_are_not_trained() -> None:
    # Defect: labels = input_ids.
    labels = np.array([-100, -100, 7, E])
    assert shift_labels(labels, (4,)).tolist() == [-100, 7, E, -100]


# loss

THREE = {"A": (3, (2.0, 4.0)), "B": (2, (6.0,)), "C": (5, (1.0, 1.0, 1.0, 1.0))}  # slots, losses of the trained ones


def loss_of(micro_batches: list[str], normalization: str) -> float:
    """The loss of a global batch: each word is a micro-batch, each letter a sample of the docstring's example."""
    total, divisor = 0.0, 0
    for names in micro_batches:
        lengths = [THREE[name][0] for name in names]
        ends = np.cumsum(lengths).tolist()
        labels, losses = np.full(sum(lengths), IGNORED), np.zeros(sum(lengths))
        for name, end in zip(names, ends, strict=True):
            trained = THREE[name][1]
            labels[end - 1 - len(trained) : end - 1] = 1  # shifted: the last slot of a segment is never trained
            losses[end - 1 - len(trained) : end - 1] = trained
        weights, part = loss_weights(labels, ends, normalization)  # type: ignore[arg-type]
        assert weights.dtype == np.float32 and not weights[labels == IGNORED].any()
        total += float((weights * losses).sum())
        divisor += part
    return total / divisor


@pytest.mark.parametrize("micro_batches", [["AB", "C"], ["A", "B", "C"], ["CBA"], ["AC", "B"]])
def test_the_worked_example_by_token_and_by_sample(micro_batches: list[str]) -> None:
    assert loss_of(micro_batches, "token") == pytest.approx(16 / 7)
    assert loss_of(micro_batches, "sample") == pytest.approx(10 / 3)


def test_the_worked_example_by_micro_batch_depends_on_the_batching() -> None:
    assert loss_of(["AB", "C"], "micro-batch") == pytest.approx(2.5)
    assert loss_of(["AC", "B"], "micro-batch") == pytest.approx((10 / 6 + 6) / 2)
    assert loss_of(["ABC"], "micro-batch") == pytest.approx(16 / 7)


@pytest.mark.parametrize("normalization", ["token", "sample", "micro-batch"])
def test_nothing_to_train_adds_nothing(normalization: str) -> None:
    weights, divisor = loss_weights(np.full(6, IGNORED), (2, 6), normalization)  # type: ignore[arg-type]
    assert divisor == 0 and weights.tolist() == [0.0] * 6


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
def test_by_sample_each_sample_with_a_trained_token_weighs_one(lengths: list[int], data: st.DataObject) -> None:
    trained = np.array(data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths))))
    ends = [0, *np.cumsum(lengths).tolist()]
    weights, divisor = loss_weights(np.where(trained, 1, IGNORED), ends[1:], "sample")
    sums = [float(weights[first:last].sum()) for first, last in pairwise(ends)]
    assert sums == pytest.approx([float(trained[first:last].any()) for first, last in pairwise(ends)])
    assert divisor == round(sum(sums))
