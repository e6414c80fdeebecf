"""A packed batch gives what its samples give one by one: logits and every gradient, through the same code."""

from __future__ import annotations

import pytest
import torch
from packed_model import BOUNDS, PACKS, forward, loss_and_gradients, singles
from tiny import VOCABULARY, batch_of, pack, tiny_arguments


@pytest.fixture(scope="module")
def build(one_rank):
    """Bare model by type; the same weights for every type, layers with biases and norms that are not trivial."""
    from tiny_model import build_tiny_model

    def make(dtype: torch.dtype = torch.float64, extra: str = ""):
        arguments = tiny_arguments(extra)
        [model] = build_tiny_model(arguments)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=draw)
                parameter.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else 0.08 * noise)
        return model.to(dtype)

    return make


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("lengths", PACKS.values(), ids=PACKS.keys())
def test_packed_equals_one_by_one(build, dtype, lengths):
    model = build(dtype)
    packs = [pack(row, seed) for seed, row in enumerate(lengths)]
    packed = batch_of(packs)
    alone = list(singles(packs))

    logits = forward(model, packed, labels=False)[0]
    for batch, where in alone:
        own = forward(model, batch, labels=False)[0]
        assert (logits[where] - own).norm() <= BOUNDS[dtype] * own.norm()

    loss, gradients = loss_and_gradients(model, [packed])
    own_loss, own_gradients = loss_and_gradients(model, [batch for batch, _ in alone])
    assert loss == pytest.approx(own_loss, rel=BOUNDS[dtype])
    for name, gradient in gradients.items():
        error = (gradient - own_gradients[name]).norm()
        assert error <= BOUNDS[dtype] * own_gradients[name].norm() + 1e-12, name


def test_another_sample_changes_no_logit(build):
    model = build()
    input_ids, labels, bounds = pack((5, 1, 13, 7), seed=0)
    before = forward(model, batch_of([(input_ids, labels, bounds)]), labels=False)[0]
    changed = input_ids.copy()
    changed[8] = (changed[8] + 1) % VOCABULARY  # a token of the third sample, slots 6 … 18
    after = forward(model, batch_of([(changed, labels, bounds)]), labels=False)[0]
    same = (before == after).all(dim=-1)
    assert same[:8].all(), "earlier samples, and the tokens before it in its own"
    assert not same[8:19].any(), "its own sample from there on"
    assert same[19:].all(), "later samples and the padding"


def test_boundaries_matter(build):
    """The same tokens as one causal sequence give other logits: a model blind to other tokens does not pass above."""
    model = build()
    input_ids, labels, bounds = pack((5, 1, 13, 7), seed=0)
    packed = forward(model, batch_of([(input_ids, labels, bounds)]), labels=False)[0]
    joined = forward(model, batch_of([(input_ids, labels, type(bounds)((26, 32), 6))]), labels=False)[0]
    assert not torch.allclose(packed[6:26], joined[6:26], atol=1e-3)


def test_positions_matter(build):
    """Rotary positions are relative: restarting them in every segment changes nothing, other distances do."""
    from dataclasses import replace

    model = build()
    batch = batch_of([pack((5, 1, 13, 7), seed=0)])
    restarted = forward(model, batch, labels=False)
    running = forward(model, replace(batch, positions=torch.arange(32)), labels=False)
    assert torch.allclose(restarted, running, atol=1e-6)
    stretched = torch.where(torch.arange(32) % 2 == 1, batch.positions + 1, batch.positions).clamp(max=31)
    assert not torch.allclose(restarted, forward(model, replace(batch, positions=stretched), labels=False), atol=1e-4)


def test_padding_rows_of_the_vocabulary_take_no_part(build):
    """The loss equals torch's own cross entropy over the real rows, and the padding rows get no gradient."""
    model = build(torch.float32, "--make-vocab-size-divisible-by 512")
    assert model.output_layer.weight.shape[0] == 512
    batch = batch_of([pack((5, 1, 13, 7), seed=0)])
    losses = forward(model, batch)
    logits = forward(model, batch, labels=False)[0]
    expected = torch.nn.functional.cross_entropy(logits[:, :VOCABULARY], batch.labels[0], reduction="none")
    assert torch.allclose(losses[0], expected, atol=1e-5)
    _, gradients = loss_and_gradients(model, [batch])
    assert not gradients["output_layer.weight"][VOCABULARY:].any()
    assert gradients["output_layer.weight"][:VOCABULARY].any()
