"""The independent reference of GPT-2's shape in plain torch, like reference_qwen2.py: float64, unsharded, one sample.

The names and the layout of the weights are megatron-core's; linear_qkv has for each head its query, key and value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from reference_qwen2 import Shape, Weights


def norm(x: torch.Tensor, weights: Weights, at: str, epsilon: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    deviation = torch.sqrt((centred * centred).mean(-1, keepdim=True) + epsilon)
    return centred / deviation * weights[f"{at}.weight"] + weights[f"{at}.bias"]


def linear(x: torch.Tensor, weights: Weights, at: str) -> torch.Tensor:
    return x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attend(x: torch.Tensor, weights: Weights, at: str, shape: Shape) -> torch.Tensor:
    """Attention over one whole sample, with an explicit mask and softmax."""
    n, d = len(x), shape.head_size
    query, key, value = linear(x, weights, f"{at}linear_qkv").view(n, shape.heads, 3, d).unbind(2)
    scores = torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(d)
    shares = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
    return linear(torch.einsum("hij,jhd->ihd", shares, value).reshape(n, -1), weights, f"{at}linear_proj")


def logits_of(
    ids: torch.Tensor, weights: Weights, shape: Shape, masks: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """[n] → [n, vocabulary]. `masks`: factors [n, hidden] of the embedding, then of both branches of each layer."""
    factors = iter(masks if masks is not None else [torch.ones(1, 1)] * (1 + 2 * shape.layers))
    x = weights["embedding.word_embeddings.weight"][ids] + weights["embedding.position_embeddings.weight"][: len(ids)]
    x = x * next(factors)
    for layer in range(shape.layers):
        at = f"decoder.layers.{layer}."
        before = norm(x, weights, f"{at}input_layernorm", shape.epsilon)
        x = x + next(factors) * attend(before, weights, f"{at}self_attention.", shape)
        before = norm(x, weights, f"{at}pre_mlp_layernorm", shape.epsilon)
        activated = gelu_new(linear(before, weights, f"{at}mlp.linear_fc1"))
        x = x + next(factors) * linear(activated, weights, f"{at}mlp.linear_fc2")
    x = norm(x, weights, "decoder.final_layernorm", shape.epsilon)
    out = weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"])
    return x @ out[: shape.vocabulary].T
