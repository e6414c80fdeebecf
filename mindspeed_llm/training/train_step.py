"""One step: forward and backward over the micro-batches of a global batch, then the update. And evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func

from mindspeed_llm.data import MicroBatch
from mindspeed_llm.devices import traits_of
from mindspeed_llm.model import PackedBoundaries
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer


@dataclass(frozen=True)
class BatchTotals:
    """Sums over a whole global batch: all micro-batches and ranks. The same on every rank.

    Attributes:
        loss: Σ weight · loss.
        denominator: Σ of what the loss is divided by.
        trained_tokens: tokens with a label.
        tokens: tokens that are not padding.
        slots: tokens and padding.
        samples: segments that are not padding.
    """

    loss: float
    denominator: float
    trained_tokens: float
    tokens: float
    slots: float
    samples: float

    @property
    def mean_loss(self) -> float:
        """Loss of the global batch; not a number where nothing was trained."""
        return self.loss / self.denominator if self.denominator else math.nan

    def __add__(self, other: BatchTotals) -> BatchTotals:
        return BatchTotals(*(mine + theirs for mine, theirs in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        """The six sums, in the order of the fields."""
        return (self.loss, self.denominator, self.trained_tokens, self.tokens, self.slots, self.samples)


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes:
        totals: sums of its global batch.
        grad_norm: norm of the gradient before clipping, over all ranks; not a number where there is none, as on an
            overflow in fp16.
        updated: False if nothing was changed: no trained token, an overflow in fp16, or a bad step.
        bad: what is not finite in a bad step, else None.
        stop: a rank was asked to stop.
        loss_scale: what the loss of this step was multiplied by, in fp16; else None.
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
    """Train on this rank's micro-batches of one global batch. Collective; every rank gets the same answer.

    A global batch without a trained token changes nothing, neither weights nor the optimizer's state; nor does one
    whose loss or gradient is not finite.

    Args:
        model_and_optimizer: what is trained.
        batches: the micro-batches.
        device: where.
        stop: this rank was asked to stop; the answer says whether any was.
    """
    for chunk in model_and_optimizer.chunks:
        chunk.zero_grad_buffer()  # type: ignore[operator]
    model_and_optimizer.optimizer.zero_grad()
    losses = _run(model_and_optimizer, batches, device, forward_only=False)
    # fp16 has its own way with overflows
    bad_gradient = not model_and_optimizer.config.fp16 and not _gradient_is_finite(model_and_optimizer)
    totals, flags = _reduce(losses, batches, device, (bad_gradient, stop))
    stop = bool(flags[1])
    if not totals.denominator:
        return StepResult(totals, math.nan, updated=False, stop=stop)
    if not math.isfinite(totals.loss):
        return StepResult(totals, math.nan, updated=False, bad=f"the loss is {totals.loss}", stop=stop)
    if flags[0]:
        return StepResult(totals, math.nan, updated=False, bad="the gradient is not finite", stop=stop)
    # the update changes it
    loss_scale = model_and_optimizer.optimizer.get_loss_scale().item() if model_and_optimizer.config.fp16 else None
    updated, norm, _ = model_and_optimizer.optimizer.step()
    grad_norm = math.nan if norm is None else float(norm)
    return StepResult(totals, grad_norm, bool(updated), stop=stop, loss_scale=loss_scale)


def _gradient_is_finite(model_and_optimizer: ModelAndOptimizer) -> bool:
    """Whether this rank's part of the gradient has a finite norm."""
    buffers: list[Any] = [buffer for chunk in model_and_optimizer.chunks for buffer in getattr(chunk, "buffers")]  # noqa: B009
    norms = [torch.linalg.vector_norm(buffer.grad_data) for buffer in buffers]
    return bool(torch.isfinite(torch.stack(norms)).all()) if norms else True


def evaluate(
    model_and_optimizer: ModelAndOptimizer, batches: Sequence[MicroBatch], device: torch.device
) -> BatchTotals:
    """Loss of this rank's micro-batches of one global batch, without training. Collective."""
    for chunk in model_and_optimizer.chunks:
        chunk.eval()
    with torch.no_grad():
        totals, _ = _reduce(_run(model_and_optimizer, batches, device, forward_only=True), batches, device)
    for chunk in model_and_optimizer.chunks:
        chunk.train()
    return totals


def _run(
    model_and_optimizer: ModelAndOptimizer, batches: Sequence[MicroBatch], device: torch.device, forward_only: bool
) -> list[torch.Tensor]:
    return get_forward_backward_func()(
        forward_step_func=partial(_forward, device=device),
        data_iterator=[iter(batches) for _ in model_and_optimizer.chunks],
        model=model_and_optimizer.chunks,
        num_microbatches=len(batches),
        seq_length=batches[0].slots,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _forward(
    batches: Iterator[MicroBatch], chunk: torch.nn.Module, device: torch.device
) -> tuple[torch.Tensor, partial[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
    """Forward of one micro-batch through one chunk, in the shape that megatron-core's schedules call."""
    batch = next(batches).to(device)
    boundaries = PackedBoundaries(actual_seq_len=batch.actual_seq_len, positions=batch.positions)
    output = chunk(batch.tokens, batch.positions[None, :], None, labels=batch.labels, packed_seq_params=boundaries)
    return output, partial(_loss, batch)


def _loss(batch: MicroBatch, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted sum of the losses of a micro-batch: (sum, denominator, the sum to report).

    Args:
        batch: the micro-batch.
        losses: [1, T], cross entropy of every token.
    """
    assert batch.loss_weights is not None and batch.loss_denominator is not None
    # Weights first: a slot without a label may have any loss, infinite included, and 0 · inf is not 0.
    total = torch.where(batch.loss_weights > 0, losses * batch.loss_weights, 0.0).sum()
    denominator = torch.tensor(batch.loss_denominator, dtype=torch.int, device=losses.device)
    return total, denominator, total.detach().clone()  # the schedules divide `total` in place


def _reduce(
    losses: list[torch.Tensor], batches: Sequence[MicroBatch], device: torch.device, flags: tuple[bool, ...] = ()
) -> tuple[BatchTotals, list[float]]:
    """Sum over micro-batches and ranks, in one collective. The ranks of the last stage's first tensor rank count;
    of the flags it tells how many ranks have raised each.
    """
    counts = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    counts = counts and parallel_state.get_tensor_model_parallel_rank() == 0
    own: list[Any] = [0.0] * 6
    if counts:
        own = [
            0.0,
            sum(batch.loss_denominator or 0 for batch in batches),
            sum(batch.trained_tokens or 0 for batch in batches),
            sum(batch.tokens_count for batch in batches),
            sum(batch.slots for batch in batches),
            sum(batch.samples for batch in batches),
        ]
    sums = torch.tensor([*own, *map(float, flags)], dtype=torch.float64)
    if counts:
        sums[0] = torch.stack(losses).double().sum().cpu()
    # HCCL adds no float64; float32 counts exactly up to 16.7 million tokens of one global batch.
    sums = sums.to(device, torch.float64 if traits_of(device.type).sums_float64 else torch.float32)
    torch.distributed.all_reduce(sums)
    values = sums.tolist()
    return BatchTotals(*values[:6]), values[6:]
