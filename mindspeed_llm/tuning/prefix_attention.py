"""Attention with a trained prefix: keys and values in the reserved slots of every sample (prefix tuning).

    slot     0  1  2  3  4  5        p = 2 reserved slots, then the tokens a0 … a3
    key      P0 P1 k0 k1 k2 k3       P and Q [p, K] are trained in each layer; the keys P are not rotated, as in peft
    value    Q0 Q1 v0 v1 v2 v3

The queries of the reserved slots have no effect: no token and no loss depends on their output.

Tensor parallelism divides P and Q by query groups. With fewer groups than ranks each rank has all groups, uses its own,
and the backward pass sums the gradients of all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.nn.parameter import Parameter

from mindspeed_llm.adapters import VirtualTokenSettings
from mindspeed_llm.model import PackedAttention, PackedBoundaries
from mindspeed_llm.tuning.virtual_tokens import repeated


class PrefixAttention(PackedAttention):
    """PackedAttention with a prefix; `prefix_attention` binds the class attributes.

    Attributes:
        settings: number of virtual tokens.
        groups: number of query groups of the model. With fewer groups than ranks megatron-core gives core_attention a
            configuration with another number.
        prefix_key: keys of the prefix, [p, groups of this rank · d]; with fewer groups than ranks [p, all groups · d].
        prefix_value: values of the prefix, of the same shape.
    """

    settings: VirtualTokenSettings
    groups: int

    def __init__(self, config: TransformerConfig, *arguments: Any, **others: Any) -> None:
        super().__init__(config, *arguments, **others)
        group = parallel_state.get_tensor_model_parallel_group()
        ranks = group.size()
        self.group, self.is_divided = group, self.groups % ranks == 0
        own = self.groups // ranks if self.is_divided else self.groups
        for name in ("prefix_key", "prefix_value"):
            shape = (self.settings.virtual_tokens, own * config.kv_channels)
            parameter = Parameter(torch.zeros(shape, dtype=config.params_dtype))
            if self.is_divided and ranks > 1:
                set_tensor_model_parallel_attributes(parameter, True, 1, 1)
            self.register_parameter(name, parameter)

    def key_and_value(
        self, key: torch.Tensor, value: torch.Tensor, boundaries: PackedBoundaries
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return key and value with the prefix in the reserved slots, [T, 1, groups of this rank, d] each.

        Args:
            key: key after rotation.
            value: value.
            boundaries: boundaries of the micro-batch, with its reserved slots.
        """
        slots = boundaries.virtual_slots
        assert slots is not None, "data without reserved slots is refused before training"
        prefixes = (self._own_groups(prefix, key.shape[2]) for prefix in (self.prefix_key, self.prefix_value))
        own_key, own_value = (
            heads.index_copy(0, slots.index, repeated(prefix, slice(0, len(slots.slots))).view(-1, *heads.shape[1:]))
            for heads, prefix in zip((key, value), prefixes, strict=True)
        )
        return own_key, own_value

    def _own_groups(self, prefix: torch.Tensor, groups: int) -> torch.Tensor:
        """Return the part [p, groups · d] of a prefix that attention of this rank uses."""
        if self.is_divided:
            return prefix
        width, ranks = groups * self.config.kv_channels, self.group.size()
        first = self.group.rank() * self.groups // ranks * self.config.kv_channels
        return copy_to_tensor_model_parallel_region(prefix, group=self.group)[:, first : first + width]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the sharded state dictionary of the prefix.

        Args:
            prefix: prefix of the names.
            sharded_offsets: sharding of the layers.
            metadata: as in MegatronModule.
        """
        entries: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"prefix_key": 1, "prefix_value": 1} if self.is_divided else {},
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=(metadata or {})["dp_cp_group"],
        )
        return entries


def prefix_attention(settings: VirtualTokenSettings, groups: int) -> type[PrefixAttention]:
    """Return the class of core_attention for prefix tuning.

    Args:
        settings: settings of the prefix.
        groups: number of query groups of the model.
    """
    return type("PrefixAttention", (PrefixAttention,), {"settings": settings, "groups": groups})
