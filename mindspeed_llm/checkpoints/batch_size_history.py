"""History of the global batch sizes of a run.

The order of the samples and the learning rate schedule must not depend on the current batch size alone. Example: a run
over 60 packs with a batch size of 4, and of 8 from its sixth iteration on:

    iteration          0 …  5 …  10
    consumed_samples   0 … 20 …  60
    batch_sizes        [(0, 0, 4), (5, 20, 8)]

The first batch size of a run is the rounding unit of its order: --padded-samples rounds epochs up to a multiple of it,
and --length-grouped forms groups of it, also after the batch size has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizeChange:
    """A global batch size and the point of the run from which it applies.

    Attributes:
        iteration: number of iterations before that point.
        consumed_samples: number of packs (or unpacked samples) consumed before that point.
        size: packs (or unpacked samples) per global batch.
    """

    iteration: int
    consumed_samples: int
    size: int


def append_batch_size(
    sizes: Sequence[BatchSizeChange], iteration: int, consumed_samples: int, size: int
) -> tuple[BatchSizeChange, ...]:
    """Return the batch size history of a run that resumes with a batch size.

    An entry is added unless the last batch size already leads to this point and stays the same. After the smaller last
    batch of an epoch, an entry with the same size is added.

    Args:
        sizes: the history so far. Entries at or after `iteration` are dropped.
        iteration: number of iterations at the point of resume.
        consumed_samples: number of samples consumed at that point.
        size: global batch size from that point on.
    """
    before = [change for change in sizes if change.iteration < iteration]
    if before:
        last = before[-1]
        expected = last.consumed_samples + (iteration - last.iteration) * last.size
        if size == last.size and consumed_samples == expected:
            return tuple(before)
    return (*before, BatchSizeChange(iteration, consumed_samples, size))


def samples_after_iterations(sizes: Sequence[BatchSizeChange], iteration: int) -> int:
    """Return the number of samples consumed after `iteration` iterations; the last batch size applies from then on."""
    last = [change for change in sizes if change.iteration <= iteration][-1]
    return last.consumed_samples + (iteration - last.iteration) * last.size


def batch_size_problem(sizes: Sequence[BatchSizeChange], iteration: int, consumed_samples: int) -> str | None:
    """Check a batch size history that was read from a file.

    Args:
        sizes: the history; empty if it is unknown.
        iteration: progress of the run in iterations.
        consumed_samples: progress of the run in samples.

    Returns:
        What is wrong with the history; None if it is valid.
    """
    if not sizes:
        return None
    if sizes[0].iteration != 0 or sizes[0].consumed_samples != 0:
        return "batch_sizes do not begin at iteration 0"
    if any(change.size < 1 for change in sizes):
        return "batch_sizes contain a size below 1"
    points = [(change.iteration, change.consumed_samples) for change in sizes]
    rising = zip(points, [*points[1:], (iteration, consumed_samples)], strict=True)
    if any(later[0] < earlier[0] or later[1] < earlier[1] for earlier, later in rising):
        return "batch_sizes are not in ascending order, or exceed the progress"
    return None
