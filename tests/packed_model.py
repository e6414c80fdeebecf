"""Compute loss and gradients of a tiny model for packs and for single samples."""

from __future__ import annotations

import torch
from tiny import batch_of

PACKS = {
    "odd lengths, a one-token sample, padding": [(5, 1, 13, 7)],
    "one exactly full sample": [(32,)],
    "two tokens and a full rest": [(2, 30)],
    "micro-batch of three": [(5, 1, 13, 7), (32,), (11, 20)],
}


BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5}


def forward(model, batch, labels=True):
    from mindspeed_llm.model import PackedBoundaries

    boundaries = PackedBoundaries(actual_seq_len=batch.actual_seq_len, positions=batch.positions)
    return model(
        batch.tokens,
        batch.positions[None],
        None,
        labels=batch.labels if labels else None,
        packed_seq_params=boundaries,
    )


def singles(packs):
    """Yield every sample of the packs as a separate batch without padding, with its offset in the packed stream."""
    offset = 0
    for input_ids, labels, bounds in packs:
        start = 0
        for end in bounds.ends[: bounds.samples]:
            alone = (input_ids[start:end], labels[start:end], type(bounds)((end - start,), 0))
            yield batch_of([alone]), slice(offset + start, offset + end)
            start = end
        offset += bounds.ends[-1]


def losses_of(model, batch):
    """Return the loss of every token, [1, T].

    For float64, torch's cross entropy is used, because that of megatron-core computes in float32.
    """
    if next(model.parameters()).dtype != torch.float64:
        return forward(model, batch)
    logits = forward(model, batch, labels=False)[0]
    return torch.nn.functional.cross_entropy(logits, batch.labels[0], reduction="none")[None]


def loss_and_gradients(model, batches):
    """Return the summed loss of the batches and the gradient of every parameter."""
    from mindspeed_llm.model import TrainedSlots

    model.zero_grad()
    total = 0.0
    for batch in batches:
        trained = TrainedSlots(batch.trained_slots, batch.labels, batch.loss_weights)
        loss, _ = trained.weighted_sum(losses_of(model, batch))
        loss.backward()
        total += float(loss.detach())
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
