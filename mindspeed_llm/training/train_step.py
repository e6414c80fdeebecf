"""Training step: forward, backward, gradient clipping and optimizer update on a global batch; and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from mindspeed_llm.data import MicroBatch
from mindspeed_llm.devices import traits_of
from mindspeed_llm.model import PackedBoundaries, TrainedSlots, VirtualSlots
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer


@dataclass(frozen=True)
class BatchTotals:
    """Sums over a global batch: all its micro-batches and all ranks. The same on every rank.

    Attributes:
        loss: Σ loss weight · loss.
        denominator: Σ of the divisors of the micro-batches; see `data.micro_batch.loss_weights`.
        trained_tokens: number of tokens with a label.
        tokens: number of tokens (slots without padding).
        slots: number of tokens and padding.
        samples: number of segments without those of padding.
    """

    loss: float
    denominator: float
    trained_tokens: float
    tokens: float
    slots: float
    samples: float

    @property
    def mean_loss(self) -> float:
        """Loss of the global batch; NaN if it has no trained token."""
        return self.loss / self.denominator if self.denominator else math.nan

    def __add__(self, other: BatchTotals) -> BatchTotals:
        return BatchTotals(*(own + added for own, added in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        """Return the six sums in the order of the fields."""
        return (self.loss, self.denominator, self.trained_tokens, self.tokens, self.slots, self.samples)


@dataclass(frozen=True)
class StepResult:
    """Result of one training step.

    Attributes:
        totals: sums of the global batch.
        grad_norm: norm of the gradient over all ranks, before clipping; NaN if there is none, for example after an
            overflow in fp16.
        updated: False if the step changed nothing: no trained token, an overflow in fp16, or a bad step.
        bad: description of the value that is not finite in a bad step, else None.
        stop: whether any rank was asked to stop.
        loss_scale: scale of the loss in this step with fp16, else None.
    """

    totals: BatchTotals
    grad_norm: float
    updated: bool
    bad: str | None = None
    stop: bool = False
    loss_scale: float | None = None


def train_step(
    model_and_optimizer: ModelAndOptimizer, batches: Sequence[MicroBatch], device: torch.device, stop: bool = False
) -> StepResult:
    """Run forward, backward, gradient clipping and optimizer update on one global batch.

    Collective; every rank gets the same result. A global batch without a trained token, or whose loss or gradient is
    not finite, changes neither the weights nor the optimizer state.

    Args:
        model_and_optimizer: model and optimizer of this rank.
        batches: micro-batches of this rank.
        device: device of this rank; micro-batches are copied to it one by one.
        stop: whether this rank was asked to stop. The result reports whether any rank was.
    """
    for chunk in model_and_optimizer.chunks:
        chunk.zero_grad_buffer()  # type: ignore[operator]
    model_and_optimizer.optimizer.zero_grad()
    losses = [loss for loss, _ in forward_backward(model_and_optimizer.chunks, batches, device, forward_only=False)]
    # With fp16 an overflow is expected: the loss scaler of the optimizer skips the update and lowers the scale.
    bad_gradient = not model_and_optimizer.config.fp16 and not _gradient_is_finite(model_and_optimizer)
    # The flags travel in the all-reduce of the totals, so that all ranks decide alike without a second collective. A
    # rank that skipped the update or stopped alone would leave the others waiting in their next collective.
    totals, flags = reduce_totals(losses, batches, device, (bad_gradient, stop))
    stop = bool(flags[1])
    # Even with a gradient of zero, AdamW would apply weight decay and change its moments.
    if not totals.denominator:
        return StepResult(totals, math.nan, updated=False, stop=stop)
    # The loss comes before the gradient: if it is not finite, it is the cause, and the gradient is not finite either.
    if not math.isfinite(totals.loss):
        return StepResult(totals, math.nan, updated=False, bad=f"the loss is {totals.loss}", stop=stop)
    if flags[0]:
        return StepResult(totals, math.nan, updated=False, bad="the gradient is not finite", stop=stop)
    # Read before the update, which may change it.
    loss_scale = model_and_optimizer.optimizer.get_loss_scale().item() if model_and_optimizer.config.fp16 else None
    updated, norm, _ = model_and_optimizer.optimizer.step()
    grad_norm = math.nan if norm is None else float(norm)
    return StepResult(totals, grad_norm, bool(updated), stop=stop, loss_scale=loss_scale)


def _gradient_is_finite(model_and_optimizer: ModelAndOptimizer) -> bool:
    """Return whether this rank's part of the gradient has a finite norm."""
    # One norm per gradient buffer, and one value read back for all of them: each read waits for the device.
    buffers: list[Any] = [buffer for chunk in model_and_optimizer.chunks for buffer in getattr(chunk, "buffers")]  # noqa: B009
    norms = [torch.linalg.vector_norm(buffer.grad_data) for buffer in buffers]
    return bool(torch.isfinite(torch.stack(norms)).all()) if norms else True


@dataclass(frozen=True)
class SourceTotals:
    """Sums over the trained tokens of each data source, whose losses all have the weight 1. The same on every rank.

    Attributes:
        loss: Σ loss; float64 [sources].
        tokens: number of trained tokens; float64 [sources].
    """

    loss: np.ndarray
    tokens: np.ndarray

    def __add__(self, other: SourceTotals) -> SourceTotals:
        return SourceTotals(self.loss + other.loss, self.tokens + other.tokens)


def evaluate(
    model_and_optimizer: ModelAndOptimizer,
    batches: Sequence[MicroBatch],
    device: torch.device,
    sources: Sequence[str],
) -> tuple[BatchTotals, SourceTotals]:
    """Compute the totals of one global batch without training. Collective.

    Args:
        model_and_optimizer: model of this rank.
        batches: micro-batches of this rank.
        device: device of this rank.
        sources: prefixes of the data sources.

    Returns:
        The totals, and those of each source.
    """
    for chunk in model_and_optimizer.chunks:
        chunk.eval()
    with torch.no_grad():
        losses = forward_backward(model_and_optimizer.chunks, batches, device, forward_only=True)
    own = np.zeros((2, len(sources)))
    if _contributes():
        for batch, (_, each) in zip(batches, losses, strict=True):
            own += _source_sums(batch, each, sources)
    totals, sums = reduce_totals([total for total, _ in losses], batches, device, own.reshape(-1).tolist())
    for chunk in model_and_optimizer.chunks:
        chunk.train()
    return totals, SourceTotals(*np.reshape(sums, (2, len(sources))))


def _source_sums(batch: MicroBatch, losses: torch.Tensor, sources: Sequence[str]) -> np.ndarray:
    """Return sum and number of the losses [R] of a micro-batch by source; float64 [2, sources]."""
    assert batch.trained_slots is not None
    numbers = [sources.index(prefix) for prefix, _ in batch.sample_ids]
    which = np.asarray(numbers, np.int64)[batch.trained_slots // (batch.pack_slots or batch.slots)]
    values = losses.cpu().double().numpy()
    return np.stack([np.bincount(which, values, len(sources)), np.bincount(which, minlength=len(sources))])


def forward_backward(
    chunks: list[torch.nn.Module], batches: Sequence[MicroBatch], device: torch.device, forward_only: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run the pipeline schedule of megatron-core over all micro-batches of this rank.

    Args:
        chunks: model chunks of this rank, wrapped by `wrap_chunks`; the callbacks in their TransformerConfig are used.
        batches: micro-batches of this rank.
        device: device of this rank.
        forward_only: whether to compute no gradients.

    Returns:
        The loss sum [] and the losses of the trained slots [R] of each micro-batch on the last pipeline stage, the
        latter empty in training; an empty list on the other stages.
    """
    # A micro-batch of B packs is one stream of B · S slots, so its size is 1 for the schedule. Each chunk of an
    # interleaved pipeline gets its own iterator, because each reads all micro-batches.
    return get_forward_backward_func()(
        forward_step_func=partial(_forward_step, device=device, keep_losses=forward_only),
        data_iterator=[iter(batches) for _ in chunks],
        model=chunks,
        num_microbatches=len(batches),
        seq_length=batches[0].slots,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _forward_step(
    batches: Iterator[MicroBatch], chunk: torch.nn.Module, device: torch.device, keep_losses: bool
) -> tuple[torch.Tensor, partial[Any]]:
    """Run one micro-batch through one model chunk, with the signature that the schedules of megatron-core expect.

    Returns:
        The output of the chunk and the loss function for it, which the schedule calls on the last stage only.
    """
    # Every pipeline stage has its own copy of the boundaries; they are neither sent between stages nor read back from
    # a device.
    batch = next(batches).to(device)
    virtual = None if batch.virtual_slots is None else VirtualSlots(batch.virtual_slots, device)
    boundaries = PackedBoundaries(actual_seq_len=batch.actual_seq_len, positions=batch.positions, virtual_slots=virtual)
    trained = None
    if batch.trained_slots is not None:
        assert batch.labels is not None and batch.loss_weights is not None
        trained = TrainedSlots(batch.trained_slots, batch.labels, batch.loss_weights)
    output = chunk(batch.tokens, batch.positions[None, :], None, labels=trained, packed_seq_params=boundaries)
    return output, partial(_loss, batch, keep_losses)


def _loss(
    batch: MicroBatch, keep_losses: bool, output: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Return the loss sum of a micro-batch with its denominator, as the schedules of megatron-core expect it.

    The sum is not divided here: megatron-core divides the gradients by the sum of all denominators of the global batch.

    Args:
        batch: the micro-batch.
        keep_losses: whether the losses of the trained slots are needed after the pass.
        output: weighted sum of the losses [], and the losses of the trained slots [R].

    Returns:
        (loss sum [], denominator [] int32, (detached copy of the loss sum for the totals, losses [R] or [0]))
    """
    assert batch.loss_denominator is not None
    total, losses = output
    denominator = torch.tensor(batch.loss_denominator, dtype=torch.int, device=total.device)
    # A copy, because the schedules divide `total` in place.
    return total, denominator, (total.detach().clone(), losses if keep_losses else losses[:0])


def reduce_totals(
    losses: list[torch.Tensor], batches: Sequence[MicroBatch], device: torch.device, more: Sequence[float] = ()
) -> tuple[BatchTotals, list[float]]:
    """Sum losses, counts and further values over all micro-batches and ranks in one all-reduce. Collective.

    Args:
        losses: loss sums on the last stage from `forward_backward`, list [micro-batches] of tensors [].
        batches: micro-batches of this rank.
        device: device of this rank.
        more: flags, or further values of this rank; they are summed over all ranks.

    Returns:
        The totals, and the sum of each further value.
    """
    own: list[Any] = [0.0] * 6
    if _contributes():
        own = [
            0.0,
            sum(batch.loss_denominator or 0 for batch in batches),
            sum(batch.trained_tokens or 0 for batch in batches),
            sum(batch.tokens_count for batch in batches),
            sum(batch.slots for batch in batches),
            sum(batch.samples for batch in batches),
        ]
    sums = torch.tensor([*own, *map(float, more)], dtype=torch.float64)
    if _contributes():
        sums[0] = torch.stack(losses).double().sum().cpu()
    # HCCL does not support float64; float32 counts exactly up to 2^24 = 16.7 million tokens per global batch.
    sums = sums.to(device, torch.float64 if traits_of(device.type).sums_float64 else torch.float32)
    torch.distributed.all_reduce(sums)
    values = sums.tolist()
    return BatchTotals(*values[:6]), values[6:]


def _contributes() -> bool:
    """Return whether this rank contributes to the totals of its data-parallel replica.

    Tensor-parallel rank 0 of the last pipeline stage does: it has losses and labels, and its tensor-parallel peers hold
    the same values.
    """
    is_last = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    return is_last and parallel_state.get_tensor_model_parallel_rank() == 0
