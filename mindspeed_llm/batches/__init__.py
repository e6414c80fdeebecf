"""Samples → Batch, on every rank."""

from mindspeed_llm.batches.batch import Batch, loss_weights
from mindspeed_llm.batches.boundaries import (
    Boundaries,
    boundaries_from_end_tokens,
    boundaries_from_neat_mask,
    boundaries_of_one_segment,
    padding_run,
    positions,
    shift_labels,
)
from mindspeed_llm.batches.builder import BatchBuilder, BatchSettings
from mindspeed_llm.batches.prefetching import prefetch

__all__ = [
    "Batch",
    "BatchBuilder",
    "BatchSettings",
    "Boundaries",
    "boundaries_from_end_tokens",
    "boundaries_from_neat_mask",
    "boundaries_of_one_segment",
    "loss_weights",
    "padding_run",
    "positions",
    "prefetch",
    "shift_labels",
]
