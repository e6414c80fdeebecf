"""Count the floating-point operations of a training step.

Attention counts as Σ len² over the segments, not as S² over the pack: with packed samples the latter would report a
utilization that the device never reached. The operations of the model are those without recomputation, as in the
definition of model FLOPs utilization (MFU); `recomputed_flops` counts what recomputation adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mindspeed_llm.adapters import AdapterSettings, BottleneckSettings, LoraSettings
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.boundaries import segment_lengths
from mindspeed_llm.devices import Device, peak_of_product


def peak_flops(device: Device, precision: str) -> float | None:
    """Return the peak operations per second of a device, or None if they are not known.

    Args:
        device: the device of this rank.
        precision: 'fp32', 'fp16' or 'bf16'; the peaks hold for 16 bits only.
    """
    name = device.product
    return None if name is None or precision == "fp32" else peak_of_product(name)


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of the forward pass of all layers on one micro-batch.

    A product of [m, k] and [k, n] is 2·m·k·n operations. Causal attention inside a segment of n tokens has n² / 2
    pairs, each of 2 · 2 · heads · head size operations (scores and values).

    Attributes:
        dense: products with the weights of the model.
        attention: scores and values of attention, Σ len² over the segments.
        branches: products with the weights of an adapter; 0 without one.
    """

    dense: float
    attention: float
    branches: float = 0.0

    @classmethod
    def of(
        cls, model: ModelArguments, actual_seq_len: Sequence[int], adapter: AdapterSettings | None = None
    ) -> ForwardFlops:
        """Count the operations of one micro-batch.

        Args:
            model: flags for the shape of the model.
            actual_seq_len: cumulative lengths of the segments of the micro-batch.
            adapter: settings of an adapter; None without one.
        """
        heads, groups, head_size = model.num_attention_heads, model.query_groups, model.head_size
        projections = model.hidden_size * head_size * (2 * heads + 2 * groups)
        mlp = model.hidden_size * model.ffn_size * (3 if model.swiglu else 2)
        tokens = actual_seq_len[-1]
        squares = sum(length**2 for length in segment_lengths(actual_seq_len))
        return cls(
            dense=2 * tokens * model.num_layers * (projections + mlp),
            attention=2 * squares * heads * head_size * model.num_layers,
            branches=0 if adapter is None else 2 * tokens * model.num_layers * _adapter_size(model, adapter),
        )


def layer_flops(model: ModelArguments, actual_seq_len: Sequence[int], adapter: AdapterSettings | None = None) -> float:
    """Count the operations of all layers, forward and backward, on one micro-batch, without recomputation.

    Backward is twice forward: the gradients of the inputs and of the weights. Frozen weights have no gradients.

    Args:
        model: flags for the shape of the model.
        actual_seq_len: cumulative lengths of the segments of the micro-batch.
        adapter: settings of an adapter, whose base model has no gradients of its weights; None without one.
    """
    forward = ForwardFlops.of(model, actual_seq_len, adapter)
    return (3.0 if adapter is None else 2.0) * forward.dense + 3.0 * (forward.attention + forward.branches)


def recomputed_flops(
    model: ModelArguments,
    training: TrainingArguments,
    actual_seq_len: Sequence[int],
    chunks: Sequence[int],
    adapter: AdapterSettings | None = None,
) -> float:
    """Count the operations that recomputation adds to one micro-batch in all layers.

    Complete layers repeat their forward pass, `selective` only attention. Activation functions have no products.

    Args:
        model: flags for the shape of the model.
        training: flags of recomputation.
        actual_seq_len: cumulative lengths of the segments of the micro-batch.
        chunks: number of layers of each model chunk of the complete model; the method 'block' recomputes the first
            layers of each.
        adapter: settings of an adapter; None without one.
    """
    if training.recompute is None:
        return 0.0
    forward = ForwardFlops.of(model, actual_seq_len, adapter)
    if training.recompute == "selective":
        return forward.attention
    is_block = training.recompute_method == "block"
    layers = sum(min(training.recompute_num_layers or 1, chunk) if is_block else chunk for chunk in chunks)
    return (forward.dense + forward.attention + forward.branches) * layers / model.num_layers


def _adapter_size(model: ModelArguments, adapter: AdapterSettings) -> int:
    """Return the number of parameters of an adapter in one layer by which tokens are multiplied."""
    if isinstance(adapter, BottleneckSettings):
        return 2 * 2 * model.hidden_size * adapter.size
    if not isinstance(adapter, LoraSettings):
        return 0
    sizes = {
        "H": model.hidden_size,
        "F": model.ffn_size,
        "Q": model.num_attention_heads * model.head_size,
        "K": model.query_groups * model.head_size,
    }
    total = 0
    for entry in adapter.layers.values():
        rows = dict(zip(entry.layer.projections, entry.layer.outputs, strict=True))
        total += len(entry.factors) * sizes[entry.layer.input] + sum(sizes[rows[name]] for name in entry.targets)
    return total * adapter.rank


def output_flops(model: ModelArguments, padded_vocab_size: int, rows: float, is_frozen: bool = False) -> float:
    """Count the operations of the output layer, forward and backward, without the recomputed logits.

    Args:
        model: flags for the shape of the model.
        padded_vocab_size: rows of the output weight.
        rows: slots whose logits are computed: the trained ones, or all of them with the dense loss.
        is_frozen: whether the weight has no gradient.
    """
    return (2.0 if is_frozen else 3.0) * logits_flops(model, padded_vocab_size, rows)


def logits_flops(model: ModelArguments, padded_vocab_size: int, rows: float) -> float:
    """Count the operations of the logits of some slots; the chunked loss computes them once more in the backward pass.

    Args:
        model: flags for the shape of the model.
        padded_vocab_size: rows of the output weight.
        rows: slots whose logits are computed.
    """
    return 2.0 * rows * model.hidden_size * padded_vocab_size
