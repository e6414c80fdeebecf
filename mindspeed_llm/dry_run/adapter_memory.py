"""Estimate what the parts of an adapter in one layer save for the backward pass, in bytes."""

from __future__ import annotations

from typing import Protocol

from mindspeed_llm.adapters import AdapterSettings, BottleneckSettings, LayerAdapter, LoraSettings
from mindspeed_llm.arguments.model_arguments import ModelArguments


class LayerActivations(Protocol):
    """What the branches need of the estimate for the rest of a layer; see `ActivationMemory`."""

    tokens: int
    rows: int
    bytes: int
    tensor: int
    dropout_bytes: int

    def input_of(self, linear: str) -> int:
        """Return the bytes of the input of a linear layer."""


class AdapterMemory(Protocol):
    """Estimates what an adapter saves in one transformer layer on one rank, without the layers' inputs."""

    def layer(self) -> int:
        """Return the bytes that the adapter saves in one transformer layer."""


def adapter_memory(settings: AdapterSettings, model: ModelArguments, activations: LayerActivations) -> AdapterMemory:
    """Return the estimate for an adapter.

    Args:
        settings: settings of the adapter.
        model: shape of the model.
        activations: the estimate for the rest of the layer.
    """
    if isinstance(settings, LoraSettings):
        return LoraMemory(settings, model, activations)
    if isinstance(settings, BottleneckSettings):
        return BottleneckMemory(settings, model, activations)
    return VirtualTokenMemory(settings.method == "prefix", model, activations)


class BottleneckMemory:
    """Estimates the bytes of bottleneck adapters (tuning/bottleneck.py).

    Each of the two saves its input [T / s, h], and input and output of its activation function, [T / s, m] each.

    Args:
        settings: settings of the adapters.
        model: shape of the model.
        activations: the estimate for the rest of the layer.
    """

    def __init__(self, settings: BottleneckSettings, model: ModelArguments, activations: LayerActivations) -> None:
        self.settings, self.model, self.activations = settings, model, activations

    def layer(self) -> int:
        """Return the bytes that both adapters of a transformer layer save."""
        own = self.activations
        return 2 * own.rows * (self.model.hidden_size + 2 * self.settings.size) * own.bytes


class VirtualTokenMemory:
    """Estimates the bytes of virtual tokens.

    In the embeddings they save nothing of the size of a micro-batch. A prefix makes the values a copy, [T, g/t, d].

    Args:
        is_prefix: whether they are a prefix of keys and values.
        model: shape of the model.
        activations: the estimate for the rest of the layer.
    """

    def __init__(self, is_prefix: bool, model: ModelArguments, activations: LayerActivations) -> None:
        self.is_prefix, self.model, self.activations = is_prefix, model, activations

    def layer(self) -> int:
        """Return the bytes that virtual tokens save in one transformer layer."""
        own = self.activations
        groups = max(self.model.query_groups // own.tensor, 1)
        return own.tokens * groups * self.model.head_size * own.bytes if self.is_prefix else 0


class LoraMemory:
    """Estimates the bytes that the branches of one transformer layer save on one rank, without the layers' inputs.

    A branch (tuning/lora_linear.py) saves the output of the factors A, and the matrices that are built from the
    factors: the factors A of a layer below each other, and the factors B expanded to the rows of the layer.

    Args:
        settings: settings of the adapter.
        model: shape of the model.
        activations: the estimate for the rest of the layer.
    """

    def __init__(self, settings: LoraSettings, model: ModelArguments, activations: LayerActivations) -> None:
        self.settings, self.model, self.activations = settings, model, activations

    def layer(self) -> int:
        """Return the bytes that the branches of one transformer layer save."""
        return sum(self._branch(adapter) for adapter in self.settings.layers.values())

    def _branch(self, adapter: LayerAdapter) -> int:
        """Return the bytes of one branch, for T slots, rank r, n factors A and the rows of the layer on this rank.

        Column-parallel: the output [T, n r], the factors A [n r, h] if there are several, the expanded factors B
        [rows, n r]. Row-parallel: the output [T / s, r]; its factors are parameters. Dropout saves its mask.
        """
        own, rank = self.activations, self.settings.rank
        input_size, count = own.input_of(adapter.layer.name), len(adapter.factors)
        # The input of A is the dropped copy, which counts as the input of the layer.
        mask = input_size // own.bytes * own.dropout_bytes if self.settings.dropout else 0
        if not adapter.layer.is_column_parallel:
            return mask + own.rows * rank * own.bytes
        width = count * rank
        factors = width * self.model.hidden_size if count > 1 else 0
        return mask + (own.tokens * width + factors + self._rows(adapter) * width) * own.bytes

    def _rows(self, adapter: LayerAdapter) -> int:
        """Return the rows of the expanded factors B."""
        model, ranks = self.model, self.activations.tensor
        if adapter.layer.name == "linear_fc1":
            return 2 * model.ffn_size // ranks
        rows = (model.num_attention_heads + 2 * model.query_groups) * model.head_size
        # Where the ranks do not divide the groups, each rank expands all rows and uses a part of them.
        return rows // ranks if model.query_groups % ranks == 0 else rows
