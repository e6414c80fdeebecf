"""The virtual tokens of prompt tuning and P-tuning: trained embeddings in the reserved slots of every sample.

    reserved slot    0  1  2         the samples a and b of a pack begin with p = 3 reserved slots each
    embeddings       v0 v1 v2 a0 a1 a2 v0 v1 v2 b0 b1

Prompt tuning trains v [p, h] itself. P-tuning trains an embedding [p, h] and the MLP that computes v from it, as peft.

With sequence parallelism each tensor-parallel rank has a part of the stream, and so a part of the gradient of v, which
finalize_model_grads of megatron-core sums (`sequence_parallel = True`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.parameter import Parameter

from mindspeed_llm.adapters import VirtualTokenSettings
from mindspeed_llm.model import PackedBoundaries


class VirtualTokens(torch.nn.Module):
    """Fills the reserved slots of a micro-batch with virtual tokens.

    Args:
        settings: number of virtual tokens, and the method.
        config: configuration of the model.

    Attributes:
        source: computes the virtual tokens [p, h].
    """

    def __init__(self, settings: VirtualTokenSettings, config: TransformerConfig) -> None:
        super().__init__()
        self.sequence_parallel = config.sequence_parallel
        source: type[PromptEmbedding] | type[PromptEncoder] = PromptEmbedding
        if settings.method == "p-tuning":
            source = PromptEncoder
        self.source = source(settings, config)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, embeddings: torch.Tensor, boundaries: PackedBoundaries) -> torch.Tensor:
        """Return the embeddings of a micro-batch with virtual tokens in its reserved slots.

        Args:
            embeddings: [T, 1, h], or [T / t, 1, h] under sequence parallelism.
            boundaries: boundaries of the micro-batch, with its reserved slots.
        """
        assert boundaries.virtual_slots is not None, "data without reserved slots is refused before training"
        tokens: torch.Tensor = self.source()
        rows = embeddings.shape[0]
        first = parallel_state.get_tensor_model_parallel_rank() * rows if self.sequence_parallel else 0
        index, which = boundaries.virtual_slots.part(first, first + rows)
        # Also without a slot on this rank, so that its output requires a gradient and its backward pass takes part in
        # the collectives of the other ranks.
        return embeddings.index_copy(0, index, repeated(tokens, which)[:, None].to(embeddings.dtype))


def repeated(tokens: torch.Tensor, which: slice) -> torch.Tensor:
    """Return the tokens of consecutive reserved slots, [n, columns].

    The backward pass sums the gradients of a token in a fixed order, which an index would not do on every device.

    Args:
        tokens: virtual tokens of one sample, [p, columns].
        which: the slots, as numbers among all reserved slots of the micro-batch.
    """
    count = len(tokens)
    first, last = which.start // count, -(-which.stop // count)
    several = tokens.expand(max(last - first, 0), *tokens.shape).reshape(-1, tokens.shape[1])
    return several[which.start - first * count : which.stop - first * count]


class PromptEmbedding(torch.nn.Module):
    """The virtual tokens of prompt tuning, which are parameters.

    Args:
        settings: number of virtual tokens.
        config: configuration of the model.

    Attributes:
        embeddings: [p, h].
    """

    def __init__(self, settings: VirtualTokenSettings, config: TransformerConfig) -> None:
        super().__init__()
        shape = (settings.virtual_tokens, config.hidden_size)
        self.embeddings = Parameter(torch.zeros(shape, dtype=config.params_dtype))

    def forward(self) -> torch.Tensor:
        """Return the virtual tokens [p, h]."""
        return self.embeddings


class PromptEncoder(torch.nn.Module):
    """The encoder of P-tuning: an embedding and an MLP of three layers with ReLU, as in peft.

    Args:
        settings: number of virtual tokens, and size of the hidden layers, e.
        config: configuration of the model.

    Attributes:
        embeddings: [p, h].
        linear_1: h → e.
        linear_2: e → e.
        linear_3: e → h.
    """

    def __init__(self, settings: VirtualTokenSettings, config: TransformerConfig) -> None:
        super().__init__()
        size, hidden = settings.encoder_width(config.hidden_size), config.hidden_size
        dtype = config.params_dtype
        self.embeddings = Parameter(torch.zeros((settings.virtual_tokens, hidden), dtype=dtype))
        self.linear_1 = torch.nn.Linear(hidden, size, dtype=dtype)
        self.linear_2 = torch.nn.Linear(size, size, dtype=dtype)
        self.linear_3 = torch.nn.Linear(size, hidden, dtype=dtype)

    def forward(self) -> torch.Tensor:
        """Return the virtual tokens [p, h]."""
        values = torch.nn.functional.relu(self.linear_1(self.embeddings))
        encoded: torch.Tensor = self.linear_3(torch.nn.functional.relu(self.linear_2(values)))
        return encoded


def virtual_tokens_builder(settings: VirtualTokenSettings) -> Callable[[TransformerConfig], VirtualTokens]:
    """Return what builds the virtual tokens of a model from its configuration.

    Args:
        settings: settings of prompt tuning or P-tuning.
    """
    return lambda config: VirtualTokens(settings, config)
