"""Join, split and shard tensors as the tensor tables of the model families specify. Values are moved, never computed.

    Hugging Face tensors  ──join_parts──▶  full tensor of megatron-core  ──shard──▶  parts of tensor-parallel ranks
                          ◀──split_parts──                               ◀──unshard──

With 4 query heads in 2 query groups and the head size d, linear_qkv has the rows

    q0 q1 k0 v0   q2 q3 k1 v1        each a block of d rows; with 2 tensor-parallel ranks each rank has one group

For the gate rows g0 g1 and the up rows u0 u1, linear_fc1 has the rows

    full: g0 g1 u0 u1    rank 0: g0 u0    rank 1: g1 u1

The forms "transposed" and "transposed_qkv" are one tensor in both formats; Hugging Face's is [input, output]:

    Hugging Face's columns q0 q1 q2 q3 k0 k1 k2 k3 v0 v1 v2 v3       megatron-core's rows q0 k0 v0 q1 k1 v1 …

The form "copies", the shared A of an adapter, is one tensor here and several equal tensors in Hugging Face's format.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor
from mindspeed_llm.errors import CheckpointError


def join_parts(tensor: CatalogueTensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the Hugging Face tensors that make up a full tensor of megatron-core.

    Args:
        tensor: description of the tensor.
        parts: one tensor [rows, columns] or [rows] for each of `tensor.parts`. Except for the form "qkv", they may be
            the parts of one rank.

    Returns:
        Tensor [rows of all parts, columns] or [rows of all parts]; for the form "copies" [rows, columns] of one part.

    Raises:
        CheckpointError: the parts of the form "copies" differ.
    """
    if tensor.form == "copies":
        _check_copies(tensor, parts)
        return parts[0]
    if tensor.form == "same":
        return parts[0]
    if tensor.form == "gate_up":
        return torch.cat(list(parts))
    if tensor.form == "transposed":
        return parts[0].t().contiguous()
    if tensor.form == "transposed_qkv":
        # t() leaves a bias [rows] as it is. Without grouped queries the three projections have the same size.
        parts = parts[0].t().chunk(3)
    # [groups, rows of a group, ...] for query, key and value: concatenated per group, so that each rank of a
    # tensor-parallel layout gets complete groups when the rows are divided.
    grouped = [part.unflatten(0, (tensor.groups, -1)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 1)


def _check_copies(tensor: CatalogueTensor, parts: Sequence[torch.Tensor]) -> None:
    """Refuse parts [rows, columns] that should be copies of one tensor, but differ."""
    for (name, _), part in zip(tensor.parts, parts, strict=True):
        if not torch.equal(part, parts[0]):
            raise CheckpointError(
                f"{name} differs from {tensor.parts[0][0]}, so that the two projections cannot share one matrix A; "
                "give the names of the projections (--lora-target-modules q_proj …) instead of that of the linear layer"
            )


def split_parts(tensor: CatalogueTensor, full: torch.Tensor) -> list[torch.Tensor]:
    """Split a full tensor of megatron-core into Hugging Face tensors, the inverse of `join_parts`.

    Args:
        tensor: description of the tensor.
        full: the full tensor [*tensor.shape].

    Returns:
        One contiguous tensor [rows, columns] or [rows] for each of `tensor.parts`.
    """
    if tensor.form == "copies":
        return [full.contiguous()] * len(tensor.parts)
    if tensor.form == "transposed":
        return [full.t().contiguous()]
    if tensor.form == "transposed_qkv":
        # [groups, query or key or value, rows of a head, ...]
        heads = full.unflatten(0, (tensor.groups, 3, -1))
        return [heads.transpose(0, 1).flatten(0, 2).t().contiguous()]
    rows = [shape[0] for _, shape in tensor.parts]
    if tensor.form != "qkv":
        return [part.contiguous() for part in full.split(rows)]
    grouped = full.unflatten(0, (tensor.groups, -1)).split([count // tensor.groups for count in rows], dim=1)
    return [part.flatten(0, 1).contiguous() for part in grouped]


def shard(
    tensor: CatalogueTensor, full: torch.Tensor, rank: int, ranks: int, vocabulary_rows: int | None = None
) -> torch.Tensor:
    """Return the part of one tensor-parallel rank.

    Args:
        tensor: description of the tensor.
        full: the full tensor [*tensor.shape].
        rank: tensor-parallel rank.
        ranks: tensor-parallel size.
        vocabulary_rows: rows of the padded vocabulary over all ranks; without it the vocabulary is not padded.

    Returns:
        Tensor of the shape that `shard_shape` returns, such as [rows / ranks, columns]; it may be a view of `full`.
    """
    if tensor.split == "whole" or (ranks == 1 and tensor.split != "vocabulary"):
        return full
    if tensor.split == "columns":
        return full.chunk(ranks, dim=1)[rank].contiguous()
    # Each rank needs its rows of the gate and of the up projection, so the two halves are divided separately.
    if tensor.form == "gate_up":
        return torch.cat([half.chunk(ranks)[rank] for half in full.chunk(2)])
    if tensor.split == "vocabulary":
        rows = (vocabulary_rows or full.shape[0]) // ranks
        part = full[rank * rows : (rank + 1) * rows]
        if part.shape[0] == rows:
            return part
        # The padding is at the end of the vocabulary, so only the last ranks have fewer than `rows` rows of weights.
        return torch.cat([part, part.new_zeros(rows - part.shape[0], *part.shape[1:])])
    return full.chunk(ranks)[rank]


def shard_shape(tensor: CatalogueTensor, ranks: int, vocabulary_rows: int) -> tuple[int, ...]:
    """Return the shape of the part that `shard` returns.

    Args:
        tensor: description of the tensor.
        ranks: tensor-parallel size.
        vocabulary_rows: rows of the padded vocabulary over all ranks.
    """
    rows, *rest = tensor.shape
    if tensor.split == "whole":
        return tensor.shape
    if tensor.split == "columns":
        return (rows, rest[0] // ranks)
    return ((vocabulary_rows if tensor.split == "vocabulary" else rows) // ranks, *rest)


def unshard(tensor: CatalogueTensor, shards: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the parts of all tensor-parallel ranks, the inverse of `shard`.

    Args:
        tensor: description of the tensor.
        shards: the part of each rank, such as [rows / ranks, columns], in the order of the ranks.

    Returns:
        The full tensor [*tensor.shape], without the padding of the vocabulary.
    """
    if tensor.split == "whole":
        return shards[0]
    if tensor.split == "columns":
        return torch.cat(list(shards), dim=1)
    if tensor.form == "gate_up":
        halves = [part.chunk(2) for part in shards]
        return torch.cat([gate for gate, _ in halves] + [up for _, up in halves])
    # torch.cat would copy a single part.
    full = torch.cat(list(shards)) if len(shards) > 1 else shards[0]
    return full[: tensor.shape[0]] if tensor.split == "vocabulary" else full
