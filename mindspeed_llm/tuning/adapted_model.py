"""Choose the modules of a model with an adapter, and freeze its base."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from mindspeed_llm.adapters import AdapterSettings, BottleneckSettings, LoraSettings, VirtualTokenSettings
from mindspeed_llm.model import LayerModules, VirtualTokensBuilder
from mindspeed_llm.tuning.bottleneck import bottleneck_linear
from mindspeed_llm.tuning.lora_linear import LoraColumnParallelLinear, LoraRowParallelLinear
from mindspeed_llm.tuning.prefix_attention import prefix_attention
from mindspeed_llm.tuning.virtual_tokens import virtual_tokens_builder

# Pattern of the names of all factors B, for the parameter groups of the optimizer.
FACTOR_B_NAMES = "*.lora_B.*"
_ADAPTER_PARTS = (".lora_A.", ".lora_B.", "virtual_tokens.", ".prefix_key", ".prefix_value", ".bottleneck.")


def adapted_modules(settings: AdapterSettings | None, groups: int) -> LayerModules:
    """Return the classes of the modules of a layer, for its ModuleSpec.

    Args:
        settings: settings of the adapter; None without one.
        groups: number of query groups of the model.
    """
    if isinstance(settings, LoraSettings):
        return _lora_modules(settings)
    if isinstance(settings, BottleneckSettings):
        rows = {name: bottleneck_linear(settings, name) for name in ("linear_proj", "linear_fc2")}
        return LayerModules(**rows)
    if settings is not None and settings.method == "prefix":
        return LayerModules(core_attention=prefix_attention(settings, groups))
    return LayerModules()


def _lora_modules(settings: LoraSettings) -> LayerModules:
    """Return the classes of the modules of a layer with LoRA."""
    classes: dict[str, type] = {}
    for name, adapter in settings.layers.items():
        kind: type = LoraColumnParallelLinear if adapter.layer.is_column_parallel else LoraRowParallelLinear
        # A class and not a ModuleSpec with parameters, because SelfAttention calls the class of linear_qkv itself.
        classes[name] = type(kind.__name__, (kind,), {"adapter": adapter, "settings": settings})
    column, row = ColumnParallelLinear, RowParallelLinear
    return LayerModules(
        linear_qkv=classes.get("linear_qkv", column),
        linear_proj=classes.get("linear_proj", row),
        linear_fc1=classes.get("linear_fc1", column),
        linear_fc2=classes.get("linear_fc2", row),
    )


def virtual_tokens_of(settings: AdapterSettings | None) -> VirtualTokensBuilder | None:
    """Return what builds the virtual tokens in front of the first layer; None if the adapter has none there.

    Args:
        settings: settings of the adapter; None without one.
    """
    if isinstance(settings, VirtualTokenSettings) and settings.method != "prefix":
        return virtual_tokens_builder(settings)
    return None


def is_adapter_parameter(name: str) -> bool:
    """Return whether a parameter belongs to an adapter, and not to the base model.

    Args:
        name: name in megatron-core.
    """
    return any(part in name for part in _ADAPTER_PARTS)


def freeze_base(chunks: Sequence[torch.nn.Module]) -> None:
    """Freeze all parameters except those of the adapter.

    Args:
        chunks: model chunks of this rank, without wrappers.
    """
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad = is_adapter_parameter(name)
        # Virtual tokens in the embeddings require a gradient themselves, and are copied into embeddings without one.
        if getattr(chunk, "embedding", None) is not None and getattr(chunk, "virtual_tokens", None) is None:
            chunk.embedding.register_forward_hook(_require_gradient)  # type: ignore[union-attr]


def _require_gradient(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
    """Make the output of a frozen embedding require a gradient.

    Recomputed layers get a gradient only if one of their inputs requires one; otherwise all gradients of the adapter
    would be zero, without an error.
    """
    output.requires_grad_(True)
