"""Choose the linear layers of a model with an adapter, freeze its base, and initialise the adapter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from mindspeed_llm.adapters import LoraSettings
from mindspeed_llm.model import LinearLayers
from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.tuning.lora_linear import LoraColumnParallelLinear, LoraRowParallelLinear

# Pattern of the names of all factors B, for the parameter groups of the optimizer.
FACTOR_B_NAMES = "*.lora_B.*"
_ADAPTER_PARTS = (".lora_A.", ".lora_B.")


def lora_layers(settings: LoraSettings) -> LinearLayers:
    """Return the classes of the linear layers of a model with a LoRA adapter, for its ModuleSpec.

    Args:
        settings: settings of the adapter.
    """
    classes: dict[str, type] = {}
    for name, adapter in settings.layers.items():
        kind: type = LoraColumnParallelLinear if adapter.layer.is_column_parallel else LoraRowParallelLinear
        # A class and not a ModuleSpec with parameters, because SelfAttention calls the class of linear_qkv itself.
        classes[name] = type(kind.__name__, (kind,), {"adapter": adapter, "settings": settings})
    column, row = ColumnParallelLinear, RowParallelLinear
    return LinearLayers(
        linear_qkv=classes.get("linear_qkv", column),
        linear_proj=classes.get("linear_proj", row),
        linear_fc1=classes.get("linear_fc1", column),
        linear_fc2=classes.get("linear_fc2", row),
    )


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
        if getattr(chunk, "embedding", None) is not None:
            chunk.embedding.register_forward_hook(_require_gradient)  # type: ignore[union-attr]


def _require_gradient(_: torch.nn.Module, __: object, output: torch.Tensor) -> None:
    """Make the output of a frozen embedding require a gradient.

    Recomputed layers get a gradient only if one of their inputs requires one; otherwise all gradients of the adapter
    would be zero, without an error.
    """
    output.requires_grad_(True)


def initialize_adapter(chunks: Sequence[torch.nn.Module], seed: int) -> None:
    """Set the initial values: A as in peft, uniform in ± 1 / √(input size); B zero, so that the base is not changed.

    The values depend on the seed, the layer and the projection only, not on the layout.

    Args:
        chunks: model chunks of this rank, without wrappers. Chunks on the meta device are left as they are.
        seed: seed of the run.
    """
    with torch.no_grad():
        for number, layer in _lora_modules(chunks):
            for factor, matrix in layer.lora_A.matrices.items():
                if matrix.is_meta:
                    continue
                whole = _initial_values(seed, number, f"{layer.adapter.layer.name}.{factor}", matrix, layer.input_size)
                if getattr(matrix, "tensor_model_parallel", False):
                    whole = whole.chunk(layer.tp_group.size(), dim=1)[layer.tp_group.rank()]
                matrix.copy_(whole)


def _initial_values(seed: int, layer: int, name: str, matrix: torch.Tensor, input_size: int) -> torch.Tensor:
    """Return the whole matrix A [r, input size] in float32 on the CPU."""
    words = sha256_of(f"{seed} {layer} {name}".encode())
    generator = torch.Generator().manual_seed(int(words[:15], 16))
    bound = 1.0 / math.sqrt(input_size)
    return torch.empty(matrix.shape[0], input_size).uniform_(-bound, bound, generator=generator)


def _lora_modules(
    chunks: Sequence[torch.nn.Module],
) -> Iterator[tuple[int, LoraColumnParallelLinear | LoraRowParallelLinear]]:
    """Yield the number of the layer in the complete model, from 0, and each linear layer with a branch."""
    for chunk in chunks:
        for layer in chunk.decoder.layers:  # type: ignore[union-attr]
            for module in layer.modules():
                if isinstance(module, LoraColumnParallelLinear | LoraRowParallelLinear):
                    yield layer.layer_number - 1, module
