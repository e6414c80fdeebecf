"""Recompute the output of the MLP's activation function in the backward pass (--recompute-activation-function)."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig


class ActivationRecomputeMLP(MLP):
    """MLP that keeps the input of its activation function and frees the output until the backward pass.

        input → first layer → gate and up (kept) → activation (freed) → second layer → output

    megatron-core's selective recomputation has the activation function of experts and the complete MLP, but not this.
    The second layer saves the activation for its backward pass. The gradient of its output arrives before that pass and
    triggers the recomputation into the same storage, so results are bitwise equal.
    """

    def forward(
        self, hidden_states: torch.Tensor, per_token_scale: None = None, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output of the second layer, of the shape of `hidden_states`, [T, 1, h], and its bias.

        Args:
            hidden_states: [T, 1, h], or [T / t, 1, h] under sequence parallelism.
            per_token_scale: None; megatron-core passes it only for experts.
        """
        assert per_token_scale is None
        projected, bias = self.linear_fc1(hidden_states)
        # megatron-core takes every value but None for fp8, also False.
        checkpoint = CheckpointWithoutOutput(fp8=None)
        output, output_bias = self.linear_fc2(checkpoint.checkpoint(self._activation, projected, bias))
        checkpoint.discard_output_and_register_recompute(output)
        return output, output_bias

    def _activation(self, projected: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Apply bias and activation function as MLP.forward does: [T, 1, 2f / t] or [T, 1, f / t] → [T, 1, f / t]."""
        if self.config.bias_activation_fusion:
            fused: torch.Tensor = bias_swiglu_impl(projected, bias)
            return fused
        if bias is not None:
            projected = projected + bias
        if self.config.gated_linear_unit and not self.config.use_te_activation_func:
            gate, up = projected.chunk(2, dim=-1)
            gated: torch.Tensor = self.activation_func(gate) * (up + self.config.glu_linear_offset)
            return gated
        activated: torch.Tensor = self.activation_func(projected)
        return activated


def activation_recompute_mlp(submodules: MLPSubmodules) -> type[ActivationRecomputeMLP]:
    """Return ActivationRecomputeMLP with these submodules, as a class that a layer builds from the configuration alone.

    Args:
        submodules: both linear layers and the activation function.
    """

    # A class and not a ModuleSpec: megatron-core logs a warning for a ModuleSpec of an MLP that it does not know.
    class BoundMLP(ActivationRecomputeMLP):
        def __init__(self, config: TransformerConfig) -> None:
            super().__init__(config, submodules, ffn_hidden_size=config.ffn_hidden_size)

    return BoundMLP
