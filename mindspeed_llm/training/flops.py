"""Count the floating-point operations of a training step.

Attention counts as Σ len² over the segments, not as S² over the pack: with packed samples the latter would report a
utilization that the device never reached.
"""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.adapters import AdapterSettings, BottleneckSettings, LoraSettings
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.boundaries import segment_lengths
from mindspeed_llm.devices import Device

# Peak dense operations per second of one device in 16-bit precision, from the data sheets of the vendor. The longer
# prefix comes first, because the first match counts. A device that is not listed gets no utilization in its metrics,
# which is better than a guessed value.
PEAK_FLOPS_16_BIT = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: Device, precision: str) -> float | None:
    """Return the peak operations per second of a device, or None if they are not known.

    Args:
        device: the device of this rank.
        precision: 'fp32', 'fp16' or 'bf16'; the peaks hold for 16 bits only.
    """
    name = device.product
    if name is None or precision == "fp32":
        return None
    return next((peak for beginning, peak in PEAK_FLOPS_16_BIT.items() if name.startswith(beginning)), None)


def layer_flops(model: ModelArguments, actual_seq_len: Sequence[int], adapter: AdapterSettings | None = None) -> float:
    """Count the operations of all layers, forward and backward, on one micro-batch, without recomputation.

    A product of [m, k] and [k, n] is 2·m·k·n operations, and backward is twice forward. Causal attention inside a
    segment of n tokens has n² / 2 pairs, each of 2 · 2 · heads · head size operations (scores and values).

    Args:
        model: flags for the shape of the model.
        actual_seq_len: cumulative lengths of the segments of the micro-batch.
        adapter: settings of an adapter, whose base model has no gradients of its weights; None without one.
    """
    heads, groups, head_size = model.num_attention_heads, model.query_groups, model.head_size
    projections = model.hidden_size * head_size * (2 * heads + 2 * groups)
    mlp = model.hidden_size * model.ffn_size * (3 if model.swiglu else 2)
    tokens = actual_seq_len[-1]
    squares = sum(length**2 for length in segment_lengths(actual_seq_len))
    attention = 2 * squares * heads * head_size * model.num_layers
    dense = 2 * tokens * model.num_layers * (projections + mlp)
    if adapter is None:
        return 3.0 * (dense + attention)
    branches = 2 * tokens * model.num_layers * _adapter_size(model, adapter)
    return 2.0 * dense + 3.0 * (attention + branches)


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
    return (2.0 if is_frozen else 3.0) * 2 * rows * model.hidden_size * padded_vocab_size
