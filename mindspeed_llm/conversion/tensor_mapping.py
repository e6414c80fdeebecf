"""The engine that runs the tables: parts → one tensor → the part of a tensor-parallel rank, and back. Bits only move.

With 4 query heads in 2 groups, heads of size d, linear_qkv has the rows

    q0 q1 k0 v0   q2 q3 k1 v1        each a block of d rows; 2 tensor-parallel ranks have one group each

and linear_fc1 of two ranks, for gate rows g0 g1 and up rows u0 u1,

    whole g0 g1 u0 u1    rank 0: g0 u0    rank 1: g1 u1
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor


def join_parts(tensor: CatalogueTensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Hugging Face's tensors → the whole tensor of megatron-core."""
    if tensor.form == "same":
        return parts[0]
    if tensor.form == "gate_up":
        return torch.cat(list(parts))
    grouped = [part.unflatten(0, (tensor.groups, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def split_parts(tensor: CatalogueTensor, whole: torch.Tensor) -> list[torch.Tensor]:
    """Undo `join_parts`."""
    rows = [shape[0] for _, shape in tensor.parts]
    if tensor.form != "qkv":
        return [part.contiguous() for part in whole.split(rows)]
    grouped = whole.unflatten(0, (tensor.groups, -1)).split([count // tensor.groups for count in rows], dim=1)
    return [part.flatten(0, 1).contiguous() for part in grouped]


def shard(
    tensor: CatalogueTensor, whole: torch.Tensor, rank: int, ranks: int, vocabulary_rows: int | None = None
) -> torch.Tensor:
    """The part of one tensor-parallel rank.

    Args:
        tensor: what it is.
        whole: all of it.
        rank, ranks: tensor-parallel rank and size.
        vocabulary_rows: of the padded vocabulary; without it not padded.
    """
    if tensor.split == "whole" or (ranks == 1 and tensor.split != "vocabulary"):
        return whole
    if tensor.split == "columns":
        return whole.chunk(ranks, dim=1)[rank].contiguous()
    if tensor.form == "gate_up":
        return torch.cat([half.chunk(ranks)[rank] for half in whole.chunk(2)])
    if tensor.split == "vocabulary":
        rows = (vocabulary_rows or whole.shape[0]) // ranks
        own = whole[rank * rows : (rank + 1) * rows]
        if own.shape[0] == rows:
            return own
        return torch.cat([own, own.new_zeros(rows - own.shape[0], *own.shape[1:])])
    return whole.chunk(ranks)[rank]


def shard_shape(tensor: CatalogueTensor, ranks: int, vocabulary_rows: int) -> tuple[int, ...]:
    """Shape of what `shard` gives."""
    rows, *rest = tensor.shape
    if tensor.split == "whole":
        return tensor.shape
    if tensor.split == "columns":
        return (rows, rest[0] // ranks)
    return ((vocabulary_rows if tensor.split == "vocabulary" else rows) // ranks, *rest)


def unshard(tensor: CatalogueTensor, shards: Sequence[torch.Tensor]) -> torch.Tensor:
    """Undo `shard`: the parts of all tensor-parallel ranks → the whole tensor, without the vocabulary's padding."""
    if tensor.split == "whole":
        return shards[0]
    if tensor.split == "columns":
        return torch.cat(list(shards), dim=1)
    if tensor.form == "gate_up":
        halves = [part.chunk(2) for part in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    whole = torch.cat(list(shards)) if len(shards) > 1 else shards[0]
    return whole[: tensor.shape[0]] if tensor.split == "vocabulary" else whole
