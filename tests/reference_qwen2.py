"""The independent reference: Qwen2 in plain torch, float64, unsharded, one sample at a time, nothing packed.

It shares no code with the package nor with megatron-core: its own attention, rotation, cross entropy, gradient
clipping, AdamW and learning-rate schedule. Only the names and the layout of the weights are megatron-core's, as a
checkpoint has them:

    linear_qkv   [groups · (heads per group + 2) · d, hidden]: for each group its queries, then its key, then its value
    linear_fc1   [2 · ffn, hidden]: gate, then up
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Weights = dict[str, torch.Tensor]
# One sample: ids int64 [n], and its labels, not shifted, -100 where nothing is trained.
Sample = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """The model's numbers."""

    layers: int = 4
    hidden: int = 64
    heads: int = 4
    groups: int = 2
    rotary_base: float = 1e6
    epsilon: float = 1e-6
    vocabulary: int = 300
    rope_scaling: float | None = None
    model: Callable[[torch.Tensor, Weights, Shape], torch.Tensor] | None = None  # instead of `logits_of`

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@dataclass(frozen=True)
class Recipe:
    """The optimizer's numbers."""

    lr: float = 1e-4
    min_lr: float = 1e-5
    steps: int = 5
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-6
    weight_decay: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Cosine from lr at step 0 to min_lr at the end."""
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * step / self.steps)) * (self.lr - self.min_lr)


def rotary_table(shape: Shape, positions: int) -> torch.Tensor:
    """Angles [positions, d], both halves alike, in float32 as every implementation has them (Su et al., 2021)."""
    size = shape.head_size
    frequencies = 1.0 / (shape.rotary_base ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    if shape.rope_scaling is not None:
        frequencies = stretched(frequencies, shape.rope_scaling)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
    return torch.cat((angles, angles), dim=-1)


def stretched(frequencies: torch.Tensor, factor: float) -> torch.Tensor:
    """Llama 3.1's rule: wavelengths under 2,048 stay, those over 8,192 grow by `factor`, between them a mixture."""
    wavelengths = 2 * math.pi / frequencies
    share = ((8192.0 / wavelengths - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / factor


def rotated(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """[n, heads, d] rotated by the cosines and sines of [n, d], which are rounded to float32."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * angles.cos().double()[:, None] + turned * angles.sin().double()[:, None]


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + epsilon) * weight


def attend(x: torch.Tensor, weights: Weights, at: str, shape: Shape) -> torch.Tensor:
    """Grouped-query attention over one whole sample, with an explicit mask and softmax."""
    n, d, per_group = len(x), shape.head_size, shape.heads // shape.groups
    mixed = x @ weights[f"{at}linear_qkv.weight"].T + weights[f"{at}linear_qkv.bias"]
    mixed = mixed.view(n, shape.groups, per_group + 2, d)
    query = mixed[:, :, :per_group].reshape(n, shape.heads, d)
    key, value = (mixed[:, :, per_group + i].repeat_interleave(per_group, dim=1) for i in (0, 1))
    angles = rotary_table(shape, n)
    query, key = rotated(query, angles), rotated(key, angles)
    scores = torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(d)
    scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    shares = shares / shares.sum(-1, keepdim=True)
    return torch.einsum("hij,jhd->ihd", shares, value).reshape(n, -1) @ weights[f"{at}linear_proj.weight"].T


def logits_of(ids: torch.Tensor, weights: Weights, shape: Shape) -> torch.Tensor:
    """[n] → [n, vocabulary]."""
    x = weights["embedding.word_embeddings.weight"][ids]
    for layer in range(shape.layers):
        at = f"decoder.layers.{layer}."
        before = norm(x, weights[f"{at}input_layernorm.weight"], shape.epsilon)
        x = x + attend(before, weights, f"{at}self_attention.", shape)
        before = norm(x, weights[f"{at}pre_mlp_layernorm.weight"], shape.epsilon)
        gate, up = (before @ weights[f"{at}mlp.linear_fc1.weight"].T).chunk(2, dim=-1)
        x = x + (gate * torch.sigmoid(gate) * up) @ weights[f"{at}mlp.linear_fc2.weight"].T
    x = norm(x, weights["decoder.final_layernorm.weight"], shape.epsilon)
    out = weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"])
    return x @ out[: shape.vocabulary].T


def sample_loss(sample: Sample, weights: Weights, shape: Shape) -> torch.Tensor:
    """Sum of the losses of a sample's trained tokens, of which there is at least one."""
    ids, labels = sample
    targets = labels[1:]
    trained = targets != -100
    logits = (shape.model or logits_of)(ids, weights, shape)[:-1][trained]
    shifted = logits - logits.amax(-1, keepdim=True)
    chosen = shifted.gather(-1, targets[trained][:, None])[:, 0]
    return (shifted.exp().sum(-1).log() - chosen).sum()


def trained_targets(sample: Sample) -> int:
    """How many tokens of a sample are predicted and count."""
    return int((sample[1][1:] != -100).sum())


def weighted(micro_batches: Sequence[Sequence[Sample]], normalization: str) -> list[tuple[Sample, float]]:
    """The samples of a global batch, each with what the sum of its tokens' losses is multiplied by.

    token: 1 / trained tokens of all; sample: 1 / (samples with a trained token · its own);
    micro-batch: 1 / (micro-batches with a trained token · trained tokens of its micro-batch).
    """
    micro_batches = [[sample for sample in one if trained_targets(sample)] for one in micro_batches]
    counts = [sum(trained_targets(sample) for sample in one) for one in micro_batches]
    samples = sum(len(one) for one in micro_batches)
    return [
        (
            sample,
            {
                "token": 1 / sum(counts),
                "sample": 1 / (samples * trained_targets(sample)),
                "micro-batch": 1 / (sum(map(bool, counts)) * count),
            }[normalization],
        )
        for one, count in zip(micro_batches, counts, strict=True)
        for sample in one
    ]


def train(start: Weights, batches: Sequence[Sequence[tuple[Sample, float]]], shape: Shape, recipe: Recipe) -> dict:
    """Steps over global batches from `weighted`. Returns losses, norms and gradients of each, weights at the end."""
    weights = {name: value.double().clone().requires_grad_() for name, value in start.items()}
    mean = {name: torch.zeros_like(value) for name, value in weights.items()}
    square = {name: torch.zeros_like(value) for name, value in weights.items()}
    result: dict = {"losses": [], "norms": [], "gradients": []}
    for step, samples in enumerate(batches):
        parts = [share * sample_loss(sample, weights, shape) for sample, share in samples]
        loss = torch.stack(parts).sum()
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        length = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        result["losses"].append(float(loss.detach()))
        result["norms"].append(length)
        result["gradients"].append(gradients)
        clip = min(1.0, recipe.clip / (length + 1e-6))
        with torch.no_grad():
            for name, weight in weights.items():
                gradient = gradients[name] * clip
                mean[name].mul_(recipe.beta1).add_(gradient, alpha=1 - recipe.beta1)
                square[name].mul_(recipe.beta2).add_(gradient**2, alpha=1 - recipe.beta2)
                steady_mean = mean[name] / (1 - recipe.beta1 ** (step + 1))
                steady_square = square[name] / (1 - recipe.beta2 ** (step + 1))
                if weight.dim() > 1:  # biases and norms are not decayed
                    weight.mul_(1 - recipe.rate(step) * recipe.weight_decay)
                weight.sub_(recipe.rate(step) * steady_mean / (steady_square.sqrt() + recipe.eps))
    result["weights"] = {name: weight.detach() for name, weight in weights.items()}
    return result
