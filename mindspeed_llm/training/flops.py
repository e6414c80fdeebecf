"""Floating-point operations of the model, with attention counted as Σ len² and not S²."""

from __future__ import annotations

from collections.abc import Sequence

from mindspeed_llm.arguments.pretrain import PretrainArguments


def model_flops(arguments: PretrainArguments, padded_vocab_size: int, actual_seq_len: Sequence[int]) -> float:
    """Operations of forward and backward on one micro-batch, recomputation not counted.

    A product of [m, k] and [k, n] is 2·m·k·n operations; backward is twice forward. Causal attention inside a segment
    of n tokens touches n² / 2 pairs, each 2 · 2 · heads · head size operations (scores and values).

    Args:
        arguments: for the shape.
        padded_vocab_size: rows of the output layer.
        actual_seq_len: cumulative segment ends of the micro-batch.
    """
    model = arguments.model
    heads, groups, head_size = model.num_attention_heads, model.query_groups, model.head_size
    projections = model.hidden_size * head_size * (2 * heads + 2 * groups)
    mlp = model.hidden_size * model.ffn_size * (3 if model.swiglu else 2)
    tokens = actual_seq_len[-1]
    starts = (0, *actual_seq_len[:-1])
    squares = sum((end - start) ** 2 for start, end in zip(starts, actual_seq_len, strict=True))
    attention = 2 * squares * heads * head_size * model.num_layers
    dense = 2 * tokens * (model.num_layers * (projections + mlp) + model.hidden_size * padded_vocab_size)
    return 3.0 * (dense + attention)
