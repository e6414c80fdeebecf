"""Several padded buckets on one rank, and checkpoints of them as megatron-core alone saves them: wrongly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from mindspeed_llm.devices import apply_patches

# 301 rows of 64: the embedding is no multiple of 128 parameters, so that its bucket ends in padding.
OVERLAPS = "--vocab-size 301 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"
BUCKETS = f"{OVERLAPS} --ddp-bucket-size 9000"


@contextlib.contextmanager
def megatron_core_alone() -> Iterator[None]:
    """Let megatron-core save as it does without this project's patch: at wrong offsets, with a warning."""
    apply_patches("cpu")
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    name = "sharded_param_state_fully_reshardable"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(DistributedOptimizer, name, getattr(DistributedOptimizer, name).__wrapped__)
        yield
