"""Linear layers of megatron-core with a LoRA branch: y = W x + s · B (A x), of which only A and B are trained.

One product computes A x for all projections of a layer, one the sum of all branches. For query, key and value with one
query head per group, two groups (rows q0 k0 v0 q1 k1 v1 of linear_qkv) and separate factors, B is expanded to

           A_q x   A_k x   A_v x
    q0     B_q0      0       0
    k0       0     B_k0      0             a projection without an adapter has rows of zeros
    v0       0       0     B_v0
    q1     B_q1      0       0   …

Tensor parallelism with t ranks and s slots:

    layer             A               B               A x
    column-parallel   whole           its rows        [s, r]; with sequence parallelism of the own slots, then gathered
    row-parallel      its columns     whole           summed over the ranks; with sequence parallelism reduce-scattered

Only tensors of the width r are sent for the branch, never of the width of the hidden states. With sequence parallelism
each rank has the gradient of a whole factor from its own slots, so finalize_model_grads of megatron-core sums them
(`sequence_parallel = True`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.nn.parameter import Parameter

from mindspeed_llm.adapters import LayerAdapter, LoraSettings


class LoraFactors(torch.nn.Module):
    """Factors of one linear layer, A or B.

    A module of its own that is called in every forward pass: with --overlap-param-gather, DistributedDataParallel waits
    for the gathered parameters of a module before its call.

    Args:
        shapes: name → shape of each factor on this rank.
        like: weight of the layer [rows, columns], whose data type and device the factors have.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], like: torch.Tensor) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, Parameter(like.new_zeros(shape)))

    @property
    def matrices(self) -> dict[str, Parameter]:
        """The factors by their names."""
        return {name: value for name, value in self._parameters.items() if value is not None}

    def forward(self) -> torch.Tensor:
        """Return the factors below each other, [rows of all factors, columns]."""
        values: list[torch.Tensor] = list(self.matrices.values())
        return values[0] if len(values) == 1 else torch.cat(values)


class ExpandedFactors(LoraFactors):
    """The factors B of a column-parallel layer, expanded to the rows of the layer and to all factors A.

    Args:
        adapter: what is added to the layer.
        rank: r.
        layout: rows of the layer.
        like: weight of the layer [rows, columns].
    """

    def __init__(self, adapter: LayerAdapter, rank: int, layout: RowLayout, like: torch.Tensor) -> None:
        rows = dict(zip(adapter.layer.projections, layout.rows, strict=True))
        super().__init__({name: (rows[name] // layout.divisor, rank) for name in adapter.targets}, like)
        self.adapter, self.rank, self.layout = adapter, rank, layout
        if layout.divisor > 1:
            for matrix in self.matrices.values():
                set_tensor_model_parallel_attributes(matrix, True, 0, 1)

    def forward(self) -> torch.Tensor:
        """Return B for the rows of this rank and the columns of all factors A, [output size / t, factors · r]."""
        layout, rank, count = self.layout, self.rank, len(self.adapter.factors)
        matrices, blocks = self.matrices, []
        for name, rows in zip(self.adapter.layer.projections, layout.rows, strict=True):
            of_group = rows // layout.groups
            if name not in matrices:
                blocks.append(next(iter(matrices.values())).new_zeros(layout.own_groups, of_group, count * rank))
                continue
            own: torch.Tensor = matrices[name]
            if layout.own_rows is not None:
                # Each rank uses a part of the rows, and the backward pass sums the gradients of all ranks.
                own = copy_to_tensor_model_parallel_region(own, group=layout.group)
            before = 0 if self.adapter.is_shared else self.adapter.targets.index(name) * rank
            block = own.view(layout.own_groups, of_group, rank)
            blocks.append(torch.nn.functional.pad(block, (before, (count - 1) * rank - before)))
        expanded = torch.cat(blocks, dim=1).flatten(0, 1)
        return expanded if layout.own_rows is None else expanded[layout.own_rows]


@dataclass(frozen=True)
class RowLayout:
    """Rows of a column-parallel layer.

    The rows of linear_qkv alternate between the projections group by group. Where the tensor-parallel ranks do not
    divide the query groups, a rank has a part of a group, and then every rank has all rows of the factors B.

    Attributes:
        rows: rows of each projection, over all ranks.
        groups: groups in which the rows alternate, over all ranks; for linear_fc1 the ranks, which have their part of
            each projection.
        own_groups: groups of the factors on this rank.
        own_rows: rows of this rank in the complete layer if every rank has all factors; otherwise None.
        group: tensor-parallel group.
    """

    rows: tuple[int, ...]
    groups: int
    own_groups: int
    own_rows: slice | None
    group: torch.distributed.ProcessGroup

    @property
    def divisor(self) -> int:
        """Number of ranks that the rows of the factors are divided over."""
        return self.groups // self.own_groups

    @classmethod
    def of(cls, layer: ColumnParallelLinear, name: str) -> RowLayout:
        """Return the rows of a layer.

        Args:
            layer: linear_qkv or linear_fc1.
            name: its name.
        """
        config, group = layer.config, layer.tp_group
        rank, ranks = group.rank(), group.size()
        if name != "linear_qkv":
            half = layer.output_size // 2
            return cls((half, half), ranks, 1, None, group)
        query, key = config.num_attention_heads * config.kv_channels, config.num_query_groups * config.kv_channels
        groups, own = config.num_query_groups, layer.output_size_per_partition
        if groups % ranks == 0:
            return cls((query, key, key), groups, groups // ranks, None, group)
        return cls((query, key, key), groups, groups, slice(rank * own, (rank + 1) * own), group)


class LoraColumnParallelLinear(ColumnParallelLinear):
    """ColumnParallelLinear with a LoRA branch; `lora_layers` binds the class attributes.

    Attributes:
        adapter: projections that have a branch.
        settings: rank, scale and dropout.
        lora_A: matrices [r, input size], whole on every rank.
        lora_B: matrices [rows, r]: the rows of this rank, or all rows (see RowLayout).
    """

    adapter: LayerAdapter
    settings: LoraSettings

    def __init__(self, input_size: int, output_size: int, **others: Any) -> None:
        super().__init__(input_size, output_size, **others)
        rank = self.settings.rank
        self.lora_A = LoraFactors(dict.fromkeys(self.adapter.factors, (rank, input_size)), self.weight)
        layout = RowLayout.of(self, self.adapter.layer.name)
        self.lora_B = ExpandedFactors(self.adapter, rank, layout, self.weight)
        for matrix in self.lora_A.matrices.values():
            _sum_gradients(matrix, self.sequence_parallel)

    def forward(
        self, input_: torch.Tensor, weight: torch.Tensor | None = None, runtime_gather_output: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output with the branch added, [T, 1, output size / t], and the bias that is not added.

        Args:
            input_: [T, 1, input size], or [T / t, 1, input size] under sequence parallelism.
            weight: as in ColumnParallelLinear.
            runtime_gather_output: as in ColumnParallelLinear.
        """
        output, bias = super().forward(input_, weight, runtime_gather_output)
        # Without sequence parallelism every rank has the same input, and must drop the same elements.
        low = torch.nn.functional.linear(_dropped(self, input_, differs=self.sequence_parallel), self.lora_A())
        if self.sequence_parallel:
            low = gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True, group=self.tp_group)
        else:
            low = copy_to_tensor_model_parallel_region(low, group=self.tp_group)
        return _add_product(output, low, self.lora_B(), self.settings.scale), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the sharded state dictionary: as in ColumnParallelLinear, and the factors.

        Args:
            prefix: prefix of the names.
            sharded_offsets: as in ColumnParallelLinear.
            metadata: as in ColumnParallelLinear.
        """
        is_divided = self.lora_B.layout.own_rows is None
        divided = {f"lora_B.{name}": 0 for name in self.lora_B.matrices} if is_divided else {}
        return _sharded_state_dict(self, {"weight": 0, "bias": 0, **divided}, prefix, sharded_offsets, metadata)


class LoraRowParallelLinear(RowParallelLinear):
    """RowParallelLinear with a LoRA branch; `lora_layers` binds the class attributes.

    Attributes:
        adapter: the projection that has a branch.
        settings: rank, scale and dropout.
        lora_A: matrix [r, input size / t], the columns of this rank.
        lora_B: matrix [output size, r], whole on every rank.
    """

    adapter: LayerAdapter
    settings: LoraSettings

    def __init__(self, input_size: int, output_size: int, **others: Any) -> None:
        super().__init__(input_size, output_size, **others)
        (name,) = self.adapter.targets
        self.lora_A = LoraFactors({name: (self.settings.rank, self.input_size_per_partition)}, self.weight)
        self.lora_B = LoraFactors({name: (output_size, self.settings.rank)}, self.weight)
        if self.tp_group.size() > 1:
            set_tensor_model_parallel_attributes(self.lora_A.matrices[name], True, 1, 1)
        _sum_gradients(self.lora_B.matrices[name], self.sequence_parallel)

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of the layer with the branch added, and the bias that is not added.

        Args:
            input_: [T, 1, input size / t].

        Returns:
            [T, 1, output size], or [T / t, 1, output size] under sequence parallelism, and the bias.
        """
        output, bias = super().forward(input_)
        low = torch.nn.functional.linear(_dropped(self, input_, differs=True), self.lora_A())
        if self.sequence_parallel:
            low = reduce_scatter_to_sequence_parallel_region(low, group=self.tp_group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self.tp_group)
        return _add_product(output, low, self.lora_B(), self.settings.scale), bias

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the sharded state dictionary: as in RowParallelLinear, and the factors.

        Args:
            prefix: prefix of the names.
            sharded_offsets: as in RowParallelLinear.
            metadata: as in RowParallelLinear.
        """
        divided = {f"lora_A.{name}": 1 for name in self.lora_A.matrices}
        return _sharded_state_dict(self, {"weight": 1, **divided}, prefix, sharded_offsets, metadata)


LoraLinear = LoraColumnParallelLinear | LoraRowParallelLinear


def _sum_gradients(matrix: Parameter, sequence_parallel: bool) -> None:
    """Let finalize_model_grads sum the gradient of a whole factor over the tensor-parallel ranks."""
    matrix.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]


def _dropped(layer: LoraLinear, input_: torch.Tensor, differs: bool) -> torch.Tensor:
    """Apply dropout to the input of A during training.

    Args:
        layer: the layer.
        input_: [..., input size on this rank].
        differs: whether tensor-parallel ranks have different parts of the input, so that their masks must differ.
    """
    dropout = layer.settings.dropout
    if not dropout or not layer.training:
        return input_
    with get_cuda_rng_tracker().fork() if differs else contextlib.nullcontext():
        return torch.nn.functional.dropout(input_, dropout)


def _add_product(output: torch.Tensor, low: torch.Tensor, matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Return output + scale · low · matrixᵀ, of output [..., n], low [..., m] and matrix [n, m]."""
    flat = torch.addmm(output.flatten(0, -2), low.flatten(0, -2), matrix.t(), alpha=scale)
    return flat.view(output.shape)


def _sharded_state_dict(
    layer: LoraLinear,
    divided: dict[str, int],
    prefix: str,
    sharded_offsets: tuple[Any, ...],
    metadata: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return the sharded state dictionary of a layer; `divided` has the divided dimension of each divided tensor."""
    entries: dict[str, Any] = make_sharded_tensors_for_checkpoint(
        layer.state_dict(prefix="", keep_vars=True),
        prefix,
        divided,
        sharded_offsets,
        tp_group=layer.tp_group,
        dp_cp_group=(metadata or {})["dp_cp_group"],
    )
    return entries
