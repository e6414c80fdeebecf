"""Flags for several padded optimizer buckets per rank, and checkpoints with the incorrect offsets of megatron-core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from mindspeed_llm.devices import apply_patches

# 301 rows of 64: the embedding is not a multiple of 128 parameters, so its bucket ends with padding.
OVERLAPS = "--vocab-size 301 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
BUCKETS = f"{OVERLAPS} --ddp-bucket-size 9000"


@contextlib.contextmanager
def megatron_core_alone() -> Iterator[None]:
    """Remove the patch of this project, so that megatron-core saves at incorrect offsets with a warning."""
    apply_patches("cpu")
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    name = "sharded_param_state_fully_reshardable"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(DistributedOptimizer, name, getattr(DistributedOptimizer, name).__wrapped__)
        yield
