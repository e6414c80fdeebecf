"""Measure the memory that autograd saves during a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.model import PackedBoundaries, TrainedSlots, VirtualSlots
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer


def saved_bytes(model_and_optimizer: ModelAndOptimizer, arguments: PretrainArguments, device: torch.device) -> int:
    """Return the bytes that autograd saves for the backward pass of one micro-batch, without weights."""
    weights = [p for chunk in model_and_optimizer.chunks for p in chunk.parameters()]
    buffers = [b.param_data for chunk in model_and_optimizer.chunks for b in chunk.buffers if b.param_data is not None]
    return saved_by(model_and_optimizer.chunks, [*weights, *buffers], arguments, device)


def saved_by(
    chunks: Sequence[torch.nn.Module],
    left_out: Sequence[torch.Tensor],
    arguments: PretrainArguments,
    device: torch.device,
) -> int:
    """Return the bytes of all storages that one micro-batch saves in these chunks, except those of `left_out`.

    Each storage is counted once.
    """
    slots = arguments.data.seq_length * arguments.training.micro_batch_size
    # Tensors on the meta device have no address, so a storage is identified by its handle, which `kept` keeps alive.
    ours = {tensor.untyped_storage()._cdata for tensor in left_out}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in ours:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, slots, dtype=torch.int64, device=device)
    trained = TrainedSlots(np.arange(slots), ids, ids.float())
    positions = torch.zeros(slots, dtype=torch.int64, device=device)
    ends = (slots // 3, slots - 5, slots)
    count = 0 if arguments.adapter is None else arguments.adapter.virtual_tokens
    reserved = np.concatenate([start + np.arange(count) for start in (0, slots // 3)])
    virtual = VirtualSlots(reserved, device) if count else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for chunk in chunks:
            boundaries = PackedBoundaries(actual_seq_len=ends, positions=positions, virtual_slots=virtual)
            chunk(ids, positions[None, :], None, labels=trained, packed_seq_params=boundaries)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
