"""All tensors of one model: the rows of the family's tensor table with the sizes in config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.families import MCORE_LAYER, Form, Split, TensorRow


@dataclass(frozen=True)
class CatalogueTensor:
    """One tensor of one model: a row of the table with layer number, sizes and full names.

    Attributes:
        name: name in megatron-core, with the number of the layer in the complete model.
        parts: full name and shape of each Hugging Face tensor that it consists of.
        form: how the parts are joined; see `TensorRow`.
        split: how tensor parallelism divides the tensor; see `TensorRow`.
        layer: number of the layer, from 0; None outside the layers.
        groups: number of query groups (key and value heads), which the form "qkv" needs.
    """

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    form: Form
    split: Split
    layer: int | None
    groups: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the full tensor in megatron-core: the parts concatenated along the first dimension, if not equal."""
        if self.form == "copies":
            return self.parts[0][1]
        if self.form in ("transposed", "transposed_qkv"):
            return self.parts[0][1][::-1]
        return (sum(shape[0] for _, shape in self.parts), *self.parts[0][1][1:])

    @property
    def elements(self) -> int:
        """Number of elements of the full tensor."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size


class TensorCatalogue:
    """All tensors of a model.

    Args:
        config: parsed config.json of the model.

    Attributes:
        config: parsed config.json of the model.
        tied: whether input embedding and output layer are one tensor.
        layers: number of layers.
        tensors: all tensors in the order of the model: embedding, positions (if learned), layers, final norm, output
            layer (not if tied).
        is_adapter: whether these are the tensors of an adapter and not of a complete model.
        required_by: what determines the shapes, for messages.
    """

    is_adapter: ClassVar[bool] = False
    required_by: ClassVar[str] = "config.json"

    def __init__(self, config: HuggingFaceConfig) -> None:
        self.config = config
        model = config.model
        self.tied = not model.untie_embeddings_and_output_weights
        # The letters of the shapes in the tables of families/tensor_rows.py.
        self._sizes = {
            "H": model.hidden_size,
            "F": model.ffn_size,
            "Q": model.num_attention_heads * model.head_size,
            "K": model.query_groups * model.head_size,
            "D": model.head_size,
            "A": (model.num_attention_heads + 2 * model.query_groups) * model.head_size,
            "V": config.vocab_size,
            "P": model.max_position_embeddings or 0,
        }
        self._groups = model.query_groups
        self.layers = model.num_layers
        family = config.family
        self.tensors: list[CatalogueTensor] = [
            self._tensor(family.embedding, None),
            *([] if family.positions is None else [self._tensor(family.positions, None)]),
            *(self._tensor(row, layer) for layer in range(self.layers) for row in family.layer),
            self._tensor(family.final_norm, None),
            *([] if family.final_norm_bias is None else [self._tensor(family.final_norm_bias, None)]),
            *([] if self.tied else [self._tensor(family.output, None)]),
        ]

    def _tensor(self, row: TensorRow, layer: int | None) -> CatalogueTensor:
        """Return the tensor of a row in one layer, or outside the layers."""
        mcore, hugging_face = "", ""
        if layer is not None:
            mcore, hugging_face = MCORE_LAYER.format(layer), self.config.family.layer_prefix.format(layer)
        parts = tuple(
            (hugging_face + name, tuple(self._sizes[letter] for letter in letters)) for name, letters in row.parts
        )
        return CatalogueTensor(mcore + row.name, parts, row.form, row.split, layer, self._groups)

    def by_name(self) -> dict[str, CatalogueTensor]:
        """Return all tensors by their names in megatron-core."""
        return {tensor.name: tensor for tensor in self.tensors}

    def hugging_face_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor of the Hugging Face folder, in the order of the model."""
        return {name: shape for tensor in self.tensors for name, shape in tensor.parts}
