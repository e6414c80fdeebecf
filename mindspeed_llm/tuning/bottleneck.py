"""Bottleneck adapters after attention and MLP: the output x of a row-parallel layer becomes x + U · gelu(D x + d) + u.

x is whole on every tensor-parallel rank, and so are the parameters. With sequence parallelism each rank has its own
slots, and finalize_model_grads of megatron-core sums the gradients (`sequence_parallel = True`). No tensor is sent.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import RowParallelLinear
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

from mindspeed_llm.adapters import BottleneckSettings


class Bottleneck(torch.nn.Module):
    """One adapter.

    Args:
        hidden_size: h.
        size: m.
        dtype: data type of the parameters.

    Attributes:
        down: h → m.
        up: m → h.
    """

    def __init__(self, hidden_size: int, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.down = torch.nn.Linear(hidden_size, size, dtype=dtype)
        self.up = torch.nn.Linear(size, hidden_size, dtype=dtype)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values with the adapter added, [..., h].

        Args:
            values: [..., h].
        """
        added: torch.Tensor = self.up(torch.nn.functional.gelu(self.down(values)))
        return values + added


class BottleneckRowParallelLinear(RowParallelLinear):
    """RowParallelLinear with an adapter after it; `bottleneck_linear` binds the class attributes.

    Attributes:
        settings: size of the bottleneck.
        role: name of the layer, linear_proj or linear_fc2.
        bottleneck: the adapter.
    """

    settings: BottleneckSettings
    role: str

    def __init__(self, input_size: int, output_size: int, **others: Any) -> None:
        super().__init__(input_size, output_size, **others)
        self.bottleneck = Bottleneck(output_size, self.settings.size, self.weight.dtype)
        for parameter in self.bottleneck.parameters():
            parameter.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of the layer with the adapter added, and the bias that is not added.

        Args:
            input_: [T, 1, input size / t].

        Returns:
            [T, 1, output size], or [T / t, 1, output size] under sequence parallelism, and the bias, None.
        """
        output, bias = super().forward(input_)
        assert bias is None, "no supported model family has a bias there"
        return self.bottleneck(output), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the sharded state dictionary: as in RowParallelLinear, and the adapter, whole.

        Args:
            prefix: prefix of the names.
            sharded_offsets: as in RowParallelLinear.
            metadata: as in RowParallelLinear.
        """
        entries: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 1},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
        return entries


def bottleneck_linear(settings: BottleneckSettings, role: str) -> type[BottleneckRowParallelLinear]:
    """Return the class of a row-parallel layer with a bottleneck adapter.

    Args:
        settings: settings of the adapters.
        role: name of the layer, linear_proj or linear_fc2.
    """
    return type("BottleneckRowParallelLinear", (BottleneckRowParallelLinear,), {"settings": settings, "role": role})
