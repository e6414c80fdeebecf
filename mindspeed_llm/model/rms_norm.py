"""Root mean square norm (Zhang and Sennrich, 2019) with support for sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """RMSNorm over the last dimension: x / sqrt(mean(x²) + eps) · weight.

    Args:
        config: configuration of the model; its params_dtype and sequence_parallel are used.
        hidden_size: size of the last dimension.
        eps: added to the mean of the squares.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        # Without 'device=', as in torch.nn: the weight is created on the CPU and moved by Module.to like all others.
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # megatron-core sums the gradients of marked weights over the tensor-parallel ranks. Its own wrapper of
        # PyTorch's norm does not mark the weight and therefore rejects sequence parallelism.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Normalize `hidden`, [..., hidden size]; shape and dtype remain."""
        return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)
