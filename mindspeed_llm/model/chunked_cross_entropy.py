"""Chunked cross entropy: output layer and loss in one operation, for the trained rows only, without the logits.

The dense computation multiplies every slot of a micro-batch by the output weight and saves the logits, T · V numbers,
for the backward pass. Here only the R slots with a label are multiplied, C rows (one chunk) at a time:

    slot             0    1    2    3    4    5      hidden states [T, h]
    label            -    b    -    -    e    f
    trained row           0              1    2      [R, h], saved for the backward pass
    chunk (C = 2)         0              0    1      logits [C, V / t], computed in the forward and in the backward pass

The backward pass computes the logits again instead of saving them, as FlashAttention (Dao et al., 2022) does with its
scores. This takes four matrix products per trained row instead of three, and none for the other slots.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

# Rows of the weight gradient that are computed at a time where main_grad has another type than the product.
BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class TrainedSlots:
    """The slots of a micro-batch that have a label: the loss is computed of these only.

    Attributes:
        slots: their positions in the stream, ascending, int64 [R]. Host values: shapes and counts follow from them, and
            nothing is read back from a device.
        labels: int64 [1, T], on the device of the model; a valid id for slots that are not trained, too.
        weights: loss weights, float32 [1, T], on the device of the model.
    """

    slots: np.ndarray
    labels: torch.Tensor
    weights: torch.Tensor

    @functools.cached_property
    def index(self) -> torch.Tensor:
        """`slots` on the device of the model, int64 [R]."""
        return _index(self.slots, self.labels)

    def rows_of(self, values: torch.Tensor) -> torch.Tensor:
        """Select the trained slots [R] of values [1, T]."""
        return values[0].index_select(0, self.index)

    def weighted_sum(self, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Σ weight · loss, and the losses of the trained slots [R] without a gradient.

        Args:
            losses: losses of all slots, [1, T]. Those that are not trained may be infinite: they are never multiplied.
        """
        rows = self.rows_of(losses)
        return torch.dot(rows, self.rows_of(self.weights).to(rows.dtype)), rows.detach()


@dataclass(frozen=True)
class OutputLayer:
    """The shard of the output layer that this tensor-parallel rank holds.

    Attributes:
        vocabulary: real tokens of the vocabulary; further rows of the weight are padding, outside the softmax.
        chunk_size: trained rows per chunk.
        group: tensor-parallel process group; None for one rank.
        sequence_parallel: the hidden states are split along the stream between the ranks of the group.
        weight_is_shared: the embedding on this rank uses the same parameter (tied weights on one pipeline stage).
    """

    vocabulary: int
    chunk_size: int
    group: dist.ProcessGroup | None = None
    sequence_parallel: bool = False
    weight_is_shared: bool = False

    @property
    def ranks(self) -> int:
        """Number of tensor-parallel ranks."""
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        """This rank in its tensor-parallel group."""
        return 0 if self.group is None else self.group.rank()


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, trained: TrainedSlots, layer: OutputLayer
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the weighted cross entropy of the trained slots of a micro-batch.

    The gradient of the weight is added to `weight.main_grad` if it exists (megatron-core's DistributedDataParallel),
    chunk by chunk, before the hook of that parameter fires. Otherwise it is returned to autograd.

    Collectives of the tensor-parallel group: two all-reduces per chunk in the forward pass; per micro-batch one gather
    of the trained rows (sequence parallel only), and one reduce-scatter (sequence parallel) or all-reduce of their
    gradient. All ranks of the group have the same number of chunks.

    Args:
        hidden: [T, 1, h], or [T / t, 1, h] under sequence parallelism.
        weight: [V / t, h], the rows of this rank, padding included.
        trained: slots with a label, their labels and loss weights, on the device of `hidden`.
        layer: what this rank holds.

    Returns:
        Σ weight · loss, a scalar with a gradient, and the losses of the trained rows [R] without one; float32, or
        float64 for float64 inputs. Both are the same on all tensor-parallel ranks.
    """
    total, losses = _ChunkedCrossEntropy.apply(hidden, weight, trained, layer)
    return total, losses


@dataclass(frozen=True)
class AnswerSlots:
    """The slots of a stream whose logits are needed: the last token of each sequence that is being generated.

    Attributes:
        slots: their positions in the stream, ascending, int64 [R], on the host.
    """

    slots: np.ndarray


def logits_of_slots(
    hidden: torch.Tensor, weight: torch.Tensor, answers: AnswerSlots, layer: OutputLayer
) -> torch.Tensor:
    """Compute the logits of a few slots of a micro-batch, without those of the others.

    Collective in the tensor-parallel group under sequence parallelism: one gather of the rows.

    Args:
        hidden: [T, 1, h], or [T / t, 1, h] under sequence parallelism.
        weight: [V / t, h], the rows of this rank, padding included.
        answers: slots whose logits are computed.
        layer: what this rank holds.

    Returns:
        [R, columns], the columns of this rank without the padding of the vocabulary; there may be none.
    """
    rows = _RowsOfRanks(answers.slots, _index(answers.slots, hidden), hidden, layer)
    return torch.mm(rows.gather(hidden), _real_rows(weight, layer).t())


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Saves the trained rows [R, h], the weight, and a few numbers per row; nothing of size T · V."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, trained: TrainedSlots, layer: OutputLayer
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = _RowsOfRanks(trained.slots, trained.index, hidden, layer)
        states = rows.gather(hidden)
        real = _real_rows(weight, layer)
        targets, is_own = _own_targets(trained.rows_of(trained.labels), weight.shape[0], real.shape[0], layer)
        accumulated = torch.promote_types(states.dtype, torch.float32)
        maxima = states.new_empty(len(states), dtype=accumulated)
        sums = torch.empty_like(maxima)
        losses = torch.empty_like(maxima)
        product = states.new_empty((min(layer.chunk_size, len(states)), real.shape[0]))  # of every chunk in turn
        for chunk in _chunks(len(states), layer.chunk_size):
            logits = torch.mm(states[chunk], real.t(), out=product[: chunk.stop - chunk.start]).to(accumulated)
            maxima[chunk], sums[chunk], losses[chunk] = _softmax_parts(logits, targets[chunk], is_own[chunk], layer)
        weights = trained.rows_of(trained.weights).to(accumulated)
        ctx.layer, ctx.rows = layer, rows
        ctx.save_for_backward(states, weight, targets, is_own, maxima, sums, weights)
        ctx.mark_non_differentiable(losses)
        return torch.dot(losses, weights), losses

    @staticmethod
    def backward(ctx: Any, total_gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, targets, is_own, maxima, sums, weights = ctx.saved_tensors
        layer, rows = ctx.layer, ctx.rows
        real = _real_rows(weight, layer)
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        weight_gradient = _WeightGradient(weight, real.shape[0], layer) if needs_weight else None
        states_gradient = torch.empty_like(states) if needs_states else None
        product = states.new_empty((min(layer.chunk_size, len(states)), real.shape[0]))
        scale = weights * total_gradient  # per row, on the device: an upstream loss scale is never read back
        for chunk in _chunks(len(states), layer.chunk_size):
            # ∂/∂logit = (softmax − one-hot) · scale, with softmax = exp(logit − max) / sum.
            rows_of_chunk = product[: chunk.stop - chunk.start]
            logits = torch.mm(states[chunk], real.t(), out=rows_of_chunk).to(maxima.dtype)
            logits.sub_(maxima[chunk, None]).exp_().mul_((scale[chunk] / sums[chunk])[:, None])
            if real.shape[0]:
                at = targets[chunk, None]
                logits.scatter_(1, at, logits.gather(1, at) - (scale[chunk] * is_own[chunk])[:, None])
            # In 16-bit precision the gradient takes the place of the product, so that a chunk needs 6 bytes per logit.
            gradient = logits if logits.dtype == states.dtype else rows_of_chunk.copy_(logits)
            if states_gradient is not None:
                torch.mm(gradient, real, out=states_gradient[chunk])
            if weight_gradient is not None:
                weight_gradient.add(gradient, states[chunk])
        return (
            None if states_gradient is None else rows.scatter(states_gradient),
            None if weight_gradient is None else weight_gradient.finish(),
            None,
            None,
        )


def _chunks(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _real_rows(weight: torch.Tensor, layer: OutputLayer) -> torch.Tensor:
    """Rows of the weight [V / t, h] that belong to tokens; none on a rank that holds padding alone."""
    count = layer.vocabulary - layer.rank * weight.shape[0]
    return weight.detach()[: min(max(count, 0), weight.shape[0])]


def _own_targets(labels: torch.Tensor, rows: int, real: int, layer: OutputLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the labels [R] as columns of this rank's logits, and whether they are columns of this rank."""
    columns = labels - layer.rank * rows
    is_own = (columns >= 0) & (columns < real)
    return columns.clamp(0, max(real - 1, 0)), is_own


def _softmax_parts(
    logits: torch.Tensor, targets: torch.Tensor, is_own: torch.Tensor, layer: OutputLayer
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the maximum, the sum of exponentials and the loss of each row, over all ranks.

    Args:
        logits: [C, real columns of this rank]; overwritten.
        targets: column of each row's label, [C].
        is_own: whether that column is on this rank, [C].
        layer: what this rank holds.
    """
    columns = logits.shape[1]
    maxima = logits.amax(1) if columns else logits.new_full((len(logits),), float("-inf"))
    if layer.group is not None:
        dist.all_reduce(maxima, dist.ReduceOp.MAX, layer.group)
    logits.sub_(maxima[:, None])
    # One collective for both: the sum of exponentials, and the logit of the label, which one rank has.
    both = logits.new_zeros((2, len(logits)))
    if columns:
        both[1] = torch.where(is_own, logits.gather(1, targets[:, None])[:, 0], 0.0)
        both[0] = logits.exp_().sum(1)
    if layer.group is not None:
        dist.all_reduce(both, dist.ReduceOp.SUM, layer.group)
    return maxima, both[0], both[0].log() - both[1]


class _RowsOfRanks:
    """Moves the rows of some slots between the ranks of a tensor-parallel group under sequence parallelism.

    Each rank holds T / t consecutive slots. All counts follow from the slots, which every rank knows on the host. The
    rows of a rank are padded to the largest count, because the collectives need equal shapes:

        slots 1 4 5 of T = 6 on two ranks      rank 0: row 1          rank 1: rows 4 5
        gathered, padded to 2 rows per rank    1 . 4 5                positions 0 2 3

    Args:
        slots: the slots, ascending, int64 [R], on the host.
        index: the same on the device of the hidden states.
        hidden: [T, 1, h], or [T / t, 1, h] under sequence parallelism.
        layer: what this rank holds.
    """

    def __init__(self, slots: np.ndarray, index: torch.Tensor, hidden: torch.Tensor, layer: OutputLayer) -> None:
        self._group = layer.group
        self._split = layer.sequence_parallel and layer.group is not None
        self._shape = hidden.shape
        self._max_rows, self._own = len(slots), index
        if self._split:
            length = hidden.shape[0]
            rank_of = slots // length
            counts = np.bincount(rank_of, minlength=layer.ranks)
            starts = np.cumsum(counts) - counts
            self._max_rows = int(counts.max())
            self._own = _index(slots[rank_of == layer.rank] - layer.rank * length, hidden)
            offsets = rank_of * self._max_rows + np.arange(len(slots)) - starts[rank_of]
            self._positions = _index(offsets, hidden)
            self._padded_rows = layer.ranks * self._max_rows

    def gather(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the rows [R, h] of all ranks, in the order of the stream."""
        own = hidden.flatten(0, 1).index_select(0, self._own)
        if not self._split or not self._max_rows:
            return own
        padded = own.new_zeros((self._max_rows, own.shape[1]))
        padded[: len(own)] = own
        gathered = own.new_empty((self._padded_rows, own.shape[1]))
        dist.all_gather_into_tensor(gathered, padded, self._group)
        return gathered.index_select(0, self._positions)

    def scatter(self, gradient: torch.Tensor) -> torch.Tensor:
        """Sum the gradient [R, h] over the ranks, and return the part of this rank in the shape of the hidden states.

        Every rank has the gradient through its own columns of the vocabulary.
        """
        own = gradient
        if self._max_rows and self._split:
            padded = gradient.new_zeros((self._padded_rows, gradient.shape[1]))
            padded.index_copy_(0, self._positions, gradient)
            received = gradient.new_empty((self._max_rows, gradient.shape[1]))
            dist.reduce_scatter_tensor(received, padded, group=self._group)
            own = received[: len(self._own)]
        elif self._max_rows and self._group is not None:
            dist.all_reduce(own, group=self._group)
        result = gradient.new_zeros((self._shape[0] * self._shape[1], self._shape[2]))
        return result.index_copy_(0, self._own, own).view(self._shape)


def _index(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """Copy host indices [n] to the device of a tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(like.device, non_blocking=True)


class _WeightGradient:
    """Adds the gradient of the output weight chunk by chunk to main_grad, or to a new tensor without one.

    Args:
        weight: the parameter [V / t, h].
        real: its rows that belong to tokens; the others have no gradient.
        layer: what this rank holds.
    """

    def __init__(self, weight: torch.Tensor, real: int, layer: OutputLayer) -> None:
        self._weight, self._shared = weight, layer.weight_is_shared
        self._main_grad: torch.Tensor | None = getattr(weight, "main_grad", None)
        self._new: torch.Tensor | None = None
        if self._main_grad is None:
            self._new = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        total = self._new if self._main_grad is None else self._main_grad
        assert total is not None
        self._total = total[:real]

    def add(self, gradient: torch.Tensor, states: torch.Tensor) -> None:
        """Add gradientᵀ · states, of gradient [C, real] and states [C, h]."""
        if self._total.dtype == gradient.dtype:
            self._total.addmm_(gradient.t(), states)
            return
        rows = max(1, BLOCK_BYTES // (states.shape[1] * states.element_size()))
        for block in _chunks(len(self._total), rows):
            self._total[block] += torch.mm(gradient[:, block].t(), states)

    def finish(self) -> torch.Tensor | None:
        """Return the gradient for autograd; None if it is in main_grad already."""
        if self._new is not None:
            return self._new.to(self._weight.dtype)
        if not self._shared:
            # The hook of DistributedDataParallel wants a gradient to be there, and then adds it unless this flag is
            # set. An expanded scalar takes no memory. With a shared weight the embedding's own gradient arrives at the
            # same hook, which must add it, and accumulate into .grad, which must then be empty.
            self._weight.grad = self._weight.new_zeros(()).expand_as(self._weight)
            self._weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        return None
