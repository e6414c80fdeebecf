"""Root mean square norm (Zhang and Sennrich, 2019), usable with sequence parallelism."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension.

    megatron-core's own wrapper of torch's norm refuses sequence parallelism, because nobody marks the weight whose
    gradient must be summed over the tensor ranks; this one marks it.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        # Without 'device=' this follows torch.nn: on the CPU, moved by Module.to like every other weight.
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden size] → the same shape and type."""
        return torch.nn.functional.rms_norm(hidden, (hidden.shape[-1],), self.weight, self.eps)
