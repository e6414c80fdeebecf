"""One table per family: which Hugging Face tensors make up which tensor of megatron-core, and their shapes.

A row reads: megatron-core's name; the Hugging Face names that make it up, each with its shape; how they are put
together; along which dimension tensor parallelism splits the result.

    H hidden size   F MLP width   Q query heads · head size   K key heads · head size   D head size   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mindspeed_llm.arguments.hugging_face import HuggingFaceConfig

# same: as it is. qkv: group after group, its query heads, then its key head, then its value head. gate_up: one above
# the other, and each tensor-parallel rank has its part of both.
Form = Literal["same", "qkv", "gate_up"]
# rows: a column-parallel layer, [output, input] is cut along the output. columns: a row-parallel layer. whole: every
# rank has all of it. vocabulary: as rows, filled up with zeros.
Split = Literal["rows", "columns", "whole", "vocabulary"]


@dataclass(frozen=True)
class Row:
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


def _row(name: str, parts: str, form: Form, split: Split) -> Row:
    words = parts.split()
    return Row(name, tuple(zip(words[::2], words[1::2], strict=True)), form, split)


NORMS_AND_MLP = (
    _row("input_layernorm.weight", "input_layernorm.weight H", "same", "whole"),
    _row("self_attention.linear_proj.weight", "self_attn.o_proj.weight HQ", "same", "columns"),
    _row("pre_mlp_layernorm.weight", "post_attention_layernorm.weight H", "same", "whole"),
    _row("mlp.linear_fc1.weight", "mlp.gate_proj.weight FH mlp.up_proj.weight FH", "gate_up", "rows"),
    _row("mlp.linear_fc2.weight", "mlp.down_proj.weight HF", "same", "columns"),
)
QKV = _row(
    "self_attention.linear_qkv.weight",
    "self_attn.q_proj.weight QH self_attn.k_proj.weight KH self_attn.v_proj.weight KH",
    "qkv",
    "rows",
)
QKV_BIAS = _row(
    "self_attention.linear_qkv.bias",
    "self_attn.q_proj.bias Q self_attn.k_proj.bias K self_attn.v_proj.bias K",
    "qkv",
    "rows",
)
QK_NORM = (
    _row("self_attention.q_layernorm.weight", "self_attn.q_norm.weight D", "same", "whole"),
    _row("self_attention.k_layernorm.weight", "self_attn.k_norm.weight D", "same", "whole"),
)

# Rows of one layer, by model_type of config.json.
LAYER: dict[str, tuple[Row, ...]] = {
    "llama": (QKV, *NORMS_AND_MLP),
    "mistral": (QKV, *NORMS_AND_MLP),
    "qwen2": (QKV, QKV_BIAS, *NORMS_AND_MLP),
    "qwen3": (QKV, *QK_NORM, *NORMS_AND_MLP),
}
FIRST = (_row("embedding.word_embeddings.weight", "model.embed_tokens.weight VH", "same", "vocabulary"),)
LAST = (_row("decoder.final_layernorm.weight", "model.norm.weight H", "same", "whole"),)
OUTPUT = (_row("output_layer.weight", "lm_head.weight VH", "same", "vocabulary"),)

HF_LAYER = "model.layers.{}."
MCORE_LAYER = "decoder.layers.{}."

# --model-type-hf → families. MindSpeed-LLM calls every model of this kind llama2, Qwen2.5 included.
MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "llama2": ("llama", "mistral", "qwen2", "qwen3"),
    "llama3": ("llama",),
    "llama": ("llama",),
    "mistral": ("mistral",),
    "qwen2": ("qwen2",),
    "qwen25": ("qwen2",),
    "qwen3": ("qwen3",),
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of one model: a row with its layer, sizes and full names.

    Attributes:
        name: in megatron-core's modules, with the number of the layer in the whole model.
        parts: Hugging Face's full names and shapes.
        form, split: as in Row.
        layer: number of its layer; None outside layers.
        groups: key and value heads, for qkv.
    """

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    form: Form
    split: Split
    layer: int | None
    groups: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor in megatron-core: the parts one above the other."""
        return (sum(shape[0] for _, shape in self.parts), *self.parts[0][1][1:])

    @property
    def elements(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size


class Catalogue:
    """All tensors of a model, from its config.json.

    Attributes:
        config: of the model.
        tensors: in the order of the model: embedding, layers, final norm, output layer (not with tied embeddings).
    """

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config = config
        model = config.model
        self.tied = not model.untie_embeddings_and_output_weights
        self._sizes = {
            "H": model.hidden_size,
            "F": model.ffn_size,
            "Q": model.num_attention_heads * model.head_size,
            "K": model.query_groups * model.head_size,
            "D": model.head_size,
            "V": config.vocab_size,
        }
        self._groups = model.query_groups
        self.layers = model.num_layers
        last = LAST if self.tied else LAST + OUTPUT
        self.tensors: list[Tensor] = [
            *(self._tensor(row, None) for row in FIRST),
            *(self._tensor(row, layer) for layer in range(self.layers) for row in LAYER[config.family]),
            *(self._tensor(row, None) for row in last),
        ]

    def _tensor(self, row: Row, layer: int | None) -> Tensor:
        ours, theirs = ("", "") if layer is None else (MCORE_LAYER.format(layer), HF_LAYER.format(layer))
        parts = tuple((theirs + name, tuple(self._sizes[letter] for letter in letters)) for name, letters in row.parts)
        return Tensor(ours + row.name, parts, row.form, row.split, layer, self._groups)

    def by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def hugging_face_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the Hugging Face folder and its shape, in the order of the model."""
        return {name: shape for tensor in self.tensors for name, shape in tensor.parts}
