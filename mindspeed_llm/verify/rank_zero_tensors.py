"""Bring the parts of tensors that the ranks of a job hold to rank 0, one full tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state

from mindspeed_llm.checkpoints.import_weights import global_name, is_whole_factor
from mindspeed_llm.conversion import TensorCatalogue
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.conversion.tensor_mapping import split_parts, unshard

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64)
_MOST_DIMENSIONS = 6


@dataclass(frozen=True)
class _Share:
    """What one rank holds: its pipeline stage, and which of its tensors are whole factors of an adapter."""

    rank: int
    tensor_rank: int
    stage: int
    is_whole_factor: dict[str, bool]


def send_to_rank_zero(value: torch.Tensor | None, source: int, device: torch.device) -> torch.Tensor | None:
    """Send a tensor from one rank to rank 0. Called by all ranks; only the source and rank 0 take part.

    Args:
        value: the tensor [...] on the source; ignored elsewhere.
        source: the rank that has it.
        device: device of this rank.

    Returns:
        The tensor on rank 0, else None.
    """
    rank = torch.distributed.get_rank()
    if source == 0:
        return value if rank == 0 else None
    if rank == source:
        assert value is not None
        header = torch.zeros(_MOST_DIMENSIONS + 2, dtype=torch.int64, device=device)
        numbers = [_DTYPES.index(value.dtype), value.dim(), *value.shape]
        header[: len(numbers)] = torch.tensor(numbers)
        torch.distributed.send(header, 0)
        torch.distributed.send(value.contiguous(), 0)
    if rank != 0:
        return None
    header = torch.zeros(_MOST_DIMENSIONS + 2, dtype=torch.int64, device=device)
    torch.distributed.recv(header, source)
    dtype, dimensions, *sizes = header.tolist()
    received = torch.empty(sizes[:dimensions], dtype=_DTYPES[dtype], device=device)
    torch.distributed.recv(received, source)
    return received


def full_tensors(
    chunks: Sequence[torch.nn.Module],
    catalogue: TensorCatalogue,
    value_of: Callable[[torch.nn.Parameter], torch.Tensor],
    device: torch.device,
) -> Iterator[tuple[CatalogueTensor, list[torch.Tensor]]]:
    """Yield every tensor of a catalogue with its Hugging Face tensors on rank 0. Collective.

    Args:
        chunks: model chunks of this rank, without wrappers.
        catalogue: tensors to bring; those that no rank holds are left out.
        value_of: the value of a parameter of this rank: itself or its gradient.
        device: device of this rank.

    Yields:
        The tensor and its parts [rows, columns] or [rows]; an empty list on the other ranks.
    """
    own = {
        global_name(chunk, name, catalogue.tied): parameter
        for chunk in reversed(chunks)  # the embedding is in the first chunk, and its copy for the output in the last
        for name, parameter in chunk.named_parameters()
    }
    shares = _exchange_shares(own)
    rank = torch.distributed.get_rank()
    for tensor in catalogue.tensors:
        owners = _owners(shares, tensor)
        shards = []
        for owner in owners:
            value = value_of(own[tensor.name]) if rank == owner else None
            shards.append(send_to_rank_zero(value, owner, device))
        if rank != 0 or not owners:
            yield tensor, []
            continue
        parts = [shard for shard in shards if shard is not None]
        full = unshard(tensor, parts) if len(owners) > 1 or tensor.split == "vocabulary" else parts[0]
        yield tensor, split_parts(tensor, full)


def _exchange_shares(own: dict[str, torch.nn.Parameter]) -> list[_Share]:
    """Return what every rank of the first replica holds, in the order of the tensor-parallel ranks."""
    share = None
    if parallel_state.get_data_parallel_rank() == 0:
        whole = {name: is_whole_factor(name, value) for name, value in own.items()}
        share = _Share(
            torch.distributed.get_rank(),
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            whole,
        )
    every: list[_Share | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, share)
    return sorted((one for one in every if one is not None), key=lambda one: (one.stage, one.tensor_rank))


def _owners(shares: list[_Share], tensor: CatalogueTensor) -> list[int]:
    """Return the ranks whose parts form a tensor, in their order."""
    holders = [share for share in shares if tensor.name in share.is_whole_factor]
    if not holders:
        return []
    # Tied embeddings are on the first and on the last stage.
    first = [share for share in holders if share.stage == holders[0].stage]
    is_whole = tensor.split == "whole" or first[0].is_whole_factor[tensor.name]
    return [share.rank for share in (first[:1] if is_whole else first)]
