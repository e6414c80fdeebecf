"""What autograd really keeps of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.model import PackedBoundaries
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer


def saved_bytes(model_and_optimizer: ModelAndOptimizer, arguments: PretrainArguments, device: torch.device) -> int:
    """Bytes of the storages, each once, that one micro-batch leaves for its backward pass, weights left out."""
    weights = [p for chunk in model_and_optimizer.chunks for p in chunk.parameters()]
    buffers = [b.param_data for chunk in model_and_optimizer.chunks for b in chunk.buffers if b.param_data is not None]
    return saved_by(model_and_optimizer.chunks, [*weights, *buffers], arguments, device)


def saved_by(
    chunks: Sequence[torch.nn.Module],
    left_out: Sequence[torch.Tensor],
    arguments: PretrainArguments,
    device: torch.device,
) -> int:
    """Bytes of the storages, each once, that one micro-batch leaves behind in these chunks; some are left out."""
    slots = arguments.data.seq_length * arguments.training.micro_batch_size
    # Tensors on the meta device have no address; a storage is known by its handle, which lives as long as `kept`.
    ours = {tensor.untyped_storage()._cdata for tensor in left_out}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in ours:
            kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    ids = torch.zeros(1, slots, dtype=torch.int64, device=device)
    positions = torch.zeros(slots, dtype=torch.int64, device=device)
    ends = (slots // 3, slots - 5, slots)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for chunk in chunks:
            boundaries = PackedBoundaries(actual_seq_len=ends, positions=positions)
            chunk(ids, positions[None, :], None, labels=ids, packed_seq_params=boundaries)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
