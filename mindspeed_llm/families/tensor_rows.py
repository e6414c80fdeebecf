"""Rows of the tensor tables: which Hugging Face tensors make up which tensor of megatron-core, and their shapes.

A row reads: megatron-core's name; the Hugging Face names that make it up, each with its shape; how they are put
together; along which dimension tensor parallelism splits the result.

    H hidden size   F MLP width   Q query heads · head size   K key heads · head size   D head size   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# same: as it is. qkv: group after group, its query heads, then its key head, then its value head. gate_up: one above
# the other, and each tensor-parallel rank has its part of both.
Form = Literal["same", "qkv", "gate_up"]
# rows: a column-parallel layer, [output, input] is cut along the output. columns: a row-parallel layer. whole: every
# rank has all of it. vocabulary: as rows, filled up with zeros.
Split = Literal["rows", "columns", "whole", "vocabulary"]

# Prefix of a layer's tensors in megatron-core.
MCORE_LAYER = "decoder.layers.{}."


@dataclass(frozen=True)
class TensorRow:
    """One tensor of megatron-core.

    Attributes:
        name: in megatron-core; inside a layer without the layer's prefix.
        parts: Hugging Face's names, each followed by the letters of its shape.
        form: how the parts become one tensor.
        split: how that is divided over tensor-parallel ranks.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    form: Form
    split: Split


def tensor_row(name: str, parts: str, form: Form, split: Split) -> TensorRow:
    """Make a row; `parts` holds names and shapes in turn, separated by blanks."""
    words = parts.split()
    return TensorRow(name, tuple(zip(words[::2], words[1::2], strict=True)), form, split)


NORMS_AND_MLP = (
    tensor_row("input_layernorm.weight", "input_layernorm.weight H", "same", "whole"),
    tensor_row("self_attention.linear_proj.weight", "self_attn.o_proj.weight HQ", "same", "columns"),
    tensor_row("pre_mlp_layernorm.weight", "post_attention_layernorm.weight H", "same", "whole"),
    tensor_row("mlp.linear_fc1.weight", "mlp.gate_proj.weight FH mlp.up_proj.weight FH", "gate_up", "rows"),
    tensor_row("mlp.linear_fc2.weight", "mlp.down_proj.weight HF", "same", "columns"),
)
QKV = tensor_row(
    "self_attention.linear_qkv.weight",
    "self_attn.q_proj.weight QH self_attn.k_proj.weight KH self_attn.v_proj.weight KH",
    "qkv",
    "rows",
)
QKV_BIAS = tensor_row(
    "self_attention.linear_qkv.bias",
    "self_attn.q_proj.bias Q self_attn.k_proj.bias K self_attn.v_proj.bias K",
    "qkv",
    "rows",
)
Q_NORM = tensor_row("self_attention.q_layernorm.weight", "self_attn.q_norm.weight D", "same", "whole")
K_NORM = tensor_row("self_attention.k_layernorm.weight", "self_attn.k_norm.weight D", "same", "whole")

EMBEDDING = tensor_row("embedding.word_embeddings.weight", "model.embed_tokens.weight VH", "same", "vocabulary")
FINAL_NORM = tensor_row("decoder.final_layernorm.weight", "model.norm.weight H", "same", "whole")
OUTPUT = tensor_row("output_layer.weight", "lm_head.weight VH", "same", "vocabulary")
