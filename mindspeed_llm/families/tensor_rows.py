"""Define the rows of the tensor tables: which Hugging Face tensors form which tensor of megatron-core.

The columns of a row: name in megatron-core; names in Hugging Face, each with its shape; how these tensors are combined;
along which dimension tensor parallelism splits the result. One letter of a shape is one dimension:

    H hidden size   F MLP width   Q query heads · head size   K key heads · head size   D head size   V vocabulary
    A Q + 2K, query, key and value in one tensor   P rows of the position table

For example, gate [F, H] above up [F, H] is linear_fc1 [2F, H] of megatron-core, of which each tensor-parallel rank has
its rows of both:

    tensor_row("mlp.linear_fc1.weight", "mlp.gate_proj.weight FH mlp.up_proj.weight FH", "gate_up", "rows")

    Hugging Face     gate 0 1 2 3   up 0 1 2 3
    2 ranks          rank 0: gate 0 1, up 0 1        rank 1: gate 2 3, up 2 3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# same: one tensor, unchanged. qkv: group after group, each with its query heads, its key head and its value head.
# gate_up: gate above up, where each tensor-parallel rank has its part of both. transposed: one weight that is stored
# as [input, output] in Hugging Face's format (Conv1D of GPT-2). transposed_qkv: weight [input, output] or bias [output]
# with all query heads, then all key heads, then all value heads along the output; only models without grouped queries
# have it. copies: several equal tensors, of which megatron-core has one; only adapters have them
# (conversion/adapter_catalogue.py).
Form = Literal["same", "qkv", "gate_up", "transposed", "transposed_qkv", "copies"]
# rows: weight [output, input] of a column-parallel layer, split along the output. columns: weight of a row-parallel
# layer, split along the input. whole: every rank has the complete tensor. vocabulary: the same as rows, after padding
# with rows of zeros.
Split = Literal["rows", "columns", "whole", "vocabulary"]

# Prefix of a layer's tensors in megatron-core.
MCORE_LAYER = "decoder.layers.{}."


@dataclass(frozen=True)
class TensorRow:
    """One tensor of megatron-core and its parts in Hugging Face's format.

    Attributes:
        name: name in megatron-core; for a tensor of a layer without the prefix of the layer.
        parts: (Hugging Face name, letters of its shape) of each part.
        form: how the parts are combined into one tensor.
        split: how the tensor is split over tensor-parallel ranks.
    """

    name: str
    parts: tuple[tuple[str, str], ...]
    form: Form
    split: Split


def tensor_row(name: str, parts: str, form: Form, split: Split) -> TensorRow:
    """Create a row of a tensor table.

    Args:
        name: see TensorRow.
        parts: alternating names and shapes, separated by blanks.
        form: see TensorRow.
        split: see TensorRow.
    """
    fields = parts.split()
    return TensorRow(name, tuple(zip(fields[::2], fields[1::2], strict=True)), form, split)


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
# Only families with a bias in all linear layers have a tensor of this name.
FC1_BIAS_NAME = "mlp.linear_fc1.bias"

EMBEDDING = tensor_row("embedding.word_embeddings.weight", "model.embed_tokens.weight VH", "same", "vocabulary")
FINAL_NORM = tensor_row("decoder.final_layernorm.weight", "model.norm.weight H", "same", "whole")
OUTPUT = tensor_row("output_layer.weight", "lm_head.weight VH", "same", "vocabulary")
