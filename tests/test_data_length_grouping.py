"""Batches of similar lengths: how full they are, that nothing is lost, that no rank or restart changes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_llm.data import LengthGroupedOrder, PackedDataset, PackOrder
from mindspeed_llm.errors import ConfigError


def useful_share(lengths: np.ndarray, order, batch: int, epochs: int = 1) -> float:
    """Tokens ÷ slots, each batch padded to its longest sample."""
    taken = lengths[order.positions(0, epochs * order.epoch_length)].reshape(-1, batch)
    return float(taken.sum() / (taken.max(axis=1) * batch).sum())


def test_the_worked_example() -> None:
    lengths = np.array([2, 9, 3, 7])
    for seed in range(5):
        assert useful_share(lengths, LengthGroupedOrder(lengths, 2, seed), 2) == 21 / 24
    assert useful_share(lengths, PackOrder(4, 0, shuffle=False), 2) == 21 / 32


def alpaca_like(n: int) -> np.ndarray:
    """Skewed as instruction data are: a median of 90 tokens, a long tail."""
    draw = np.random.default_rng(0)
    return np.clip(draw.lognormal(4.5, 0.65, n), 20, 1024).astype(np.int64)


def test_alpaca_like_lengths() -> None:
    lengths = alpaca_like(20_000)
    at_random = np.mean([useful_share(lengths, PackOrder(20_000, seed), 4) for seed in range(3)])
    grouped = useful_share(lengths, LengthGroupedOrder(lengths, 4, 0), 4)
    assert 0.45 < at_random < 0.62
    assert grouped > 0.93


@settings(max_examples=60)
@given(n=st.integers(1, 700), batch=st.integers(1, 9), seed=st.integers(1, 50), epoch=st.integers(0, 3))
def test_every_sample_comes_once_an_epoch(n: int, batch: int, seed: int, epoch: int) -> None:
    lengths = np.random.default_rng(n).integers(1, 100, n)
    order = LengthGroupedOrder(lengths, batch, seed)
    assert order.epoch_length % batch == 0 and 0 <= order.epoch_length - n < batch
    taken = order.positions(epoch * order.epoch_length, order.epoch_length)
    counts = np.bincount(taken, minlength=n)
    assert counts.min() >= 1
    assert counts.sum() == order.epoch_length and (counts > 1).sum() <= batch - 1
    rises = np.diff(lengths[taken].reshape(-1, batch), axis=1)
    assert (rises >= 0).all(), "micro-batches of a moment are alike"


def test_grouping_depends_only_on_the_position() -> None:
    """Resumed anywhere, read in any pieces: the same samples."""
    lengths = alpaca_like(103)
    whole = LengthGroupedOrder(lengths, 4, 7).positions(0, 400)
    for start, count in ((0, 1), (17, 5), (101, 60), (250, 1), (250, 150)):
        assert (
            LengthGroupedOrder(lengths, 4, 7).positions(start, count).tolist() == whole[start : start + count].tolist()
        )


def test_batches_come_in_another_order_every_epoch_and_seed() -> None:
    lengths = alpaca_like(400)
    order = LengthGroupedOrder(lengths, 4, 7)
    first, second = (order.positions(epoch * 400, 400).reshape(-1, 4) for epoch in (0, 1))
    assert first.tolist() != second.tolist()
    assert {tuple(sorted(batch)) for batch in first.tolist()} != {tuple(sorted(batch)) for batch in second.tolist()}
    assert first.tolist() != LengthGroupedOrder(lengths, 4, 8).positions(0, 400).reshape(-1, 4).tolist()
    means = lengths[first].mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.3, "no curriculum from short to long"


@pytest.mark.parametrize(("packed", "weights", "message"), [(True, None, "packed"), (False, (0.5, 0.5), "weights")])
def test_grouping_of_unsupported_data_is_refused(packed, weights, message) -> None:
    class Files:
        pass

    from mindspeed_llm.data import DatasetShare

    components = [DatasetShare(Files(), np.arange(3))] * (len(weights) if weights else 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        PackedDataset(components, weights, packed=packed, neat=False).length_grouped_order(1, 2)
