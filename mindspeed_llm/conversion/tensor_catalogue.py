"""All tensors of one model: the rows of its family's tables with the sizes of its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.families import MCORE_LAYER, Form, Split, TensorRow


@dataclass(frozen=True)
class CatalogueTensor:
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


class TensorCatalogue:
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
        family = config.family
        self.tensors: list[CatalogueTensor] = [
            self._tensor(family.embedding, None),
            *(self._tensor(row, layer) for layer in range(self.layers) for row in family.layer),
            self._tensor(family.final_norm, None),
            *([] if self.tied else [self._tensor(family.output, None)]),
        ]

    def _tensor(self, row: TensorRow, layer: int | None) -> CatalogueTensor:
        ours, theirs = "", ""
        if layer is not None:
            ours, theirs = MCORE_LAYER.format(layer), self.config.family.layer_prefix.format(layer)
        parts = tuple((theirs + name, tuple(self._sizes[letter] for letter in letters)) for name, letters in row.parts)
        return CatalogueTensor(ours + row.name, parts, row.form, row.split, layer, self._groups)

    def by_name(self) -> dict[str, CatalogueTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def hugging_face_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the Hugging Face folder and its shape, in the order of the model."""
        return {name: shape for tensor in self.tensors for name, shape in tensor.parts}
