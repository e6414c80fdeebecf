"""Layer normalization (Ba et al., 2016) with support for sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class LayerNorm(torch.nn.Module):
    """LayerNorm over the last dimension: (x - mean(x)) / sqrt(var(x) + eps) · weight + bias.

    megatron-core's own needs Apex, and its wrapper of PyTorch's rejects sequence parallelism.

    Args:
        config: configuration of the model; its params_dtype and sequence_parallel are used.
        hidden_size: size of the last dimension.
        eps: added to the variance.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        # megatron-core sums the gradients of marked parameters over the tensor-parallel ranks.
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalize `hidden`, [..., hidden size]; shape and dtype remain."""
        return torch.nn.functional.layer_norm(hidden, (hidden.shape[-1],), self.weight, self.bias, self.eps)
