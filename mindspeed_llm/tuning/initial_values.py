"""Initial values of an adapter. They depend on the seed, the layer and the name only, not on the layout.

LoRA        A as in peft, uniform in ± 1 / √(input size); B zero
prompt      embeddings of random tokens of the vocabulary (Lester et al. 2021)
p-tuning    as in peft: embedding normal with the deviation 1, weights and biases uniform in ± 1 / √(input size)
prefix      normal with a small deviation, so that the prefix hardly changes the base model
adapter     D normal with the deviation 0.01 (Houlsby et al. 2019); d, U and u zero

LoRA and bottleneck adapters do not change the base model at the start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from megatron.core import parallel_state
from torch.nn.parameter import Parameter

from mindspeed_llm.storage.hashing import sha256_of
from mindspeed_llm.tuning.bottleneck import BottleneckRowParallelLinear
from mindspeed_llm.tuning.lora_linear import LoraColumnParallelLinear, LoraRowParallelLinear
from mindspeed_llm.tuning.prefix_attention import PrefixAttention
from mindspeed_llm.tuning.virtual_tokens import PromptEmbedding, PromptEncoder, VirtualTokens

PREFIX_DEVIATION = 0.02
BOTTLENECK_DEVIATION = 0.01


def initialize_adapter(chunks: Sequence[torch.nn.Module], seed: int) -> None:
    """Set the initial values, except those that are taken from the base model (`initialize_from_vocabulary`).

    Args:
        chunks: model chunks of this rank, without wrappers. Parameters on the meta device are left as they are.
        seed: seed of the run.
    """
    with torch.no_grad():
        for chunk in chunks:
            source = _source_of(chunk)
            if isinstance(source, PromptEncoder) and not source.embeddings.is_meta:
                _initialize_encoder(source, seed)
        for number, module in _modules_of_layers(chunks):
            if next(module.parameters()).is_meta:
                continue
            if isinstance(module, PrefixAttention):
                _initialize_prefix(module, seed, number)
            elif isinstance(module, BottleneckRowParallelLinear):
                _initialize_bottleneck(module, seed, number)
            elif isinstance(module, LoraColumnParallelLinear | LoraRowParallelLinear):
                _initialize_lora(module, seed, number)


def initialize_from_vocabulary(chunks: Sequence[torch.nn.Module], seed: int, vocabulary: int) -> None:
    """Set the virtual tokens of prompt tuning to embeddings of random tokens. Collective; the base must be loaded.

    Args:
        chunks: model chunks of this rank, without wrappers.
        seed: seed of the run.
        vocabulary: number of tokens of the vocabulary, without padding.
    """
    for chunk in chunks:
        source = _source_of(chunk)
        if not isinstance(source, PromptEmbedding):
            continue
        draw = _generator(seed, 0, "prompt")
        ids = torch.randint(0, vocabulary, (len(source.embeddings),), generator=draw)
        weight: torch.Tensor = chunk.embedding.word_embeddings.weight  # type: ignore[union-attr, assignment]
        own = ids.to(weight.device) - parallel_state.get_tensor_model_parallel_rank() * len(weight)
        is_own = (own >= 0) & (own < len(weight))
        with torch.no_grad():
            rows = torch.where(is_own[:, None], weight[own.clamp(0, len(weight) - 1)].float(), 0.0)
            # Each row is on one rank.
            torch.distributed.all_reduce(rows, group=parallel_state.get_tensor_model_parallel_group())
            source.embeddings.copy_(rows)


def _source_of(chunk: torch.nn.Module) -> torch.nn.Module | None:
    """Return what computes the virtual tokens in front of the first layer; None if the chunk has none."""
    tokens = getattr(chunk, "virtual_tokens", None)
    return tokens.source if isinstance(tokens, VirtualTokens) else None


def _initialize_encoder(encoder: PromptEncoder, seed: int) -> None:
    encoder.embeddings.copy_(_normal((seed, 0, "p-tuning"), tuple(encoder.embeddings.shape), 1.0))
    for name in ("linear_1", "linear_2", "linear_3"):
        linear = getattr(encoder, name)
        for part in ("weight", "bias"):
            values = getattr(linear, part)
            bound = 1.0 / math.sqrt(linear.in_features)
            values.copy_(_uniform((seed, 0, f"p-tuning.{name}.{part}"), tuple(values.shape), bound))


def _initialize_prefix(module: PrefixAttention, seed: int, layer: int) -> None:
    columns = module.groups * module.config.kv_channels
    for name in ("prefix_key", "prefix_value"):
        own: Parameter = getattr(module, name)
        whole = _normal((seed, layer, name), (own.shape[0], columns), PREFIX_DEVIATION)
        own.copy_(whole.chunk(module.group.size(), dim=1)[module.group.rank()] if module.is_divided else whole)


def _initialize_bottleneck(module: BottleneckRowParallelLinear, seed: int, layer: int) -> None:
    adapter = module.bottleneck
    key = (seed, layer, f"bottleneck.{module.role}")
    adapter.down.weight.copy_(_normal(key, tuple(adapter.down.weight.shape), BOTTLENECK_DEVIATION))
    for zero in (adapter.down.bias, adapter.up.weight, adapter.up.bias):
        zero.zero_()


def _initialize_lora(module: LoraColumnParallelLinear | LoraRowParallelLinear, seed: int, layer: int) -> None:
    bound = 1.0 / math.sqrt(module.input_size)
    for factor, matrix in module.lora_A.matrices.items():
        key = (seed, layer, f"{module.adapter.layer.name}.{factor}")
        whole = _uniform(key, (matrix.shape[0], module.input_size), bound)
        if getattr(matrix, "tensor_model_parallel", False):
            whole = whole.chunk(module.tp_group.size(), dim=1)[module.tp_group.rank()]
        matrix.copy_(whole)


def _generator(seed: int, layer: int, name: str) -> torch.Generator:
    words = sha256_of(f"{seed} {layer} {name}".encode())
    return torch.Generator().manual_seed(int(words[:15], 16))


def _uniform(key: tuple[int, int, str], shape: tuple[int, ...], bound: float) -> torch.Tensor:
    """Return values of a key (seed, layer, name) in float32 on the CPU, uniform in ± bound; [*shape]."""
    return torch.empty(shape).uniform_(-bound, bound, generator=_generator(*key))


def _normal(key: tuple[int, int, str], shape: tuple[int, ...], deviation: float) -> torch.Tensor:
    """Return values of a key (seed, layer, name) in float32 on the CPU, normal around 0; [*shape]."""
    return torch.empty(shape).normal_(0.0, deviation, generator=_generator(*key))


def _modules_of_layers(chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[int, torch.nn.Module]]:
    """Yield the number of the layer in the complete model, from 0, and each module with a part of an adapter."""
    kinds = (PrefixAttention, BottleneckRowParallelLinear, LoraColumnParallelLinear, LoraRowParallelLinear)
    for chunk in chunks:
        for layer in chunk.decoder.layers:  # type: ignore[union-attr]
            for module in layer.modules():
                if isinstance(module, kinds):
                    yield layer.layer_number - 1, module
