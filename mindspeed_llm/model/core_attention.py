"""The core_attention of a layer's ModuleSpec: calls an attention kernel with tensors in megatron-core's layout."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig

from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.attention import AttentionKernel, KernelChoice, select_kernel
from mindspeed_llm.model.fused_ops import apply_rotary
from mindspeed_llm.model.packed_seq_params import PackedBoundaries
from mindspeed_llm.model.transformer_config import DTYPES


def select_attention(model: ModelArguments, training: TrainingArguments, device: str) -> KernelChoice:
    """Select the attention kernel of a model.

    Args:
        model: shape of the model; its head size is used.
        training: training arguments; the precision is used.
        device: 'cpu', 'cuda', 'npu' or 'meta'.

    Raises:
        DeviceError: No kernel of the device supports this model, or the library of the device is not installed.
    """
    return select_kernel(device, DTYPES[training.precision], model.head_size)


class PackedAttention(MegatronModule):
    """Self-attention in which each sample of the stream attends only to itself.

    Inputs and outputs are those of megatron-core's DotProductAttention, except that the boundaries in packed_seq_params
    replace the attention mask.

    Args:
        config: configuration of the model.
        layer_number: not used.
        attn_mask_type: must be causal.
        attention_type: must be 'self'.
        softmax_scale: factor of the scores; None for 1 / sqrt(head size).
        kernel: the attention kernel.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        *,
        kernel: AttentionKernel,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal and attention_type == "self", "built for causal self-attention"
        assert config.attention_dropout == 0.0, "attention dropout is refused where arguments are checked"
        self.kernel = kernel
        self.softmax_scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(config.kv_channels)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        /,
        *,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: PackedBoundaries | None = None,
    ) -> torch.Tensor:
        """Compute attention inside the segments of packed_seq_params.

        Args:
            query: [T, 1, heads of this rank, head size].
            key: [T, 1, groups of this rank, head size].
            value: [T, 1, groups of this rank, head size].
            attention_mask: not used: the boundaries replace it.
            attn_mask_type: not used: attention is causal.
            attention_bias: must be None.
            packed_seq_params: boundaries of the micro-batch; must not be None.

        Returns:
            [T, 1, heads of this rank · head size].
        """
        assert isinstance(packed_seq_params, PackedBoundaries), "every pipeline stage needs the boundaries"
        # A micro-batch of B packs is one stream of B · seq_length slots with a batch size of 1.
        assert attention_bias is None and query.shape[1] == 1
        if packed_seq_params.rotary is not None:
            query, key = (apply_rotary(heads, packed_seq_params.rotary) for heads in (query, key))
        key, value = self.key_and_value(key, value, packed_seq_params)
        output = self.kernel(
            query.squeeze(1), key.squeeze(1), value.squeeze(1), packed_seq_params.actual_seq_len, self.softmax_scale
        )
        return output.reshape(output.shape[0], 1, -1)

    def key_and_value(
        self, key: torch.Tensor, value: torch.Tensor, boundaries: PackedBoundaries
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return key and value, [T, 1, groups of this rank, head size] each, as attention uses them.

        Args:
            key: key after rotation.
            value: value.
            boundaries: boundaries of the micro-batch.
        """
        return key, value
