"""The global batch sizes that a run has had: its order and its schedule must not depend on the present one alone.

A run over 60 packs in batches of 4, in batches of 8 from its sixth iteration on:

    iteration          0 …  5 …  10
    consumed_samples   0 … 20 …  60
    batch_sizes        [(0, 0, 4), (5, 20, 8)]

The first size of a run is the unit of its order: --padded-samples rounds epochs up to a multiple of it and
--length-grouped makes groups of it, whatever the size becomes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSizeChange:
    """A global batch size, from one point of a run on.

    Attributes:
        iteration, consumed_samples: the point.
        size: packs (or unpacked samples) of a global batch.
    """

    iteration: int
    consumed_samples: int
    size: int


def append_batch_size(
    sizes: Sequence[BatchSizeChange], iteration: int, consumed_samples: int, size: int
) -> tuple[BatchSizeChange, ...]:
    """The sizes of a run that goes on from a point with `size`.

    One more entry, unless the run would have come to that point, and go on from there, with the last size of `sizes`.
    After an epoch's smaller last batch there is one more with the same size.
    """
    before = [one for one in sizes if one.iteration < iteration]
    if before:
        last = before[-1]
        expected = last.consumed_samples + (iteration - last.iteration) * last.size
        if size == last.size and consumed_samples == expected:
            return tuple(before)
    return (*before, BatchSizeChange(iteration, consumed_samples, size))


def samples_after_iterations(sizes: Sequence[BatchSizeChange], iteration: int) -> int:
    """Samples consumed after `iteration` iterations; later ones than the last size's are taken to have that size."""
    last = [one for one in sizes if one.iteration <= iteration][-1]
    return last.consumed_samples + (iteration - last.iteration) * last.size


def batch_size_problem(sizes: Sequence[BatchSizeChange], iteration: int, consumed_samples: int) -> str | None:
    """What is wrong with the sizes of a run that has come to a point; None if nothing is."""
    if not sizes:
        return None
    if sizes[0].iteration != 0 or sizes[0].consumed_samples != 0:
        return "batch_sizes do not begin at iteration 0"
    if any(one.size < 1 for one in sizes):
        return "batch_sizes hold a size below 1"
    points = [(one.iteration, one.consumed_samples) for one in sizes]
    rising = zip(points, [*points[1:], (iteration, consumed_samples)], strict=True)
    if any(later[0] < earlier[0] or later[1] < earlier[1] for earlier, later in rising):
        return "batch_sizes do not rise to the progress"
    return None
