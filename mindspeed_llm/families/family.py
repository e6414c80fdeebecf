"""What this program knows about one family of models, as one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mindspeed_llm.families.tensor_rows import EMBEDDING, FINAL_NORM, K_NORM, OUTPUT, Q_NORM, QKV_BIAS, TensorRow

# never: its layers have full attention. optional: sliding-window attention if use_sliding_window is true. default:
# sliding-window attention wherever sliding_window is not null.
Window = Literal["never", "optional", "default"]


@dataclass(frozen=True)
class FamilyFeatures:
    """Parts in which the families differ.

    Attributes:
        qkv_bias: bias in the query, key and value projection.
        qk_norm: query and key of each head are normalised before the rotary embedding.
        tied_embeddings: the model may use one weight for the input embedding and the output layer.
        sliding_window: which models have layers with sliding-window attention.
        rope_scaling: kinds of rope scaling, as config.json names them, besides none ("default").
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = True
    sliding_window: Window = "never"
    rope_scaling: tuple[str, ...] = ("llama3",)


@dataclass(frozen=True)
class ModelFamily:
    """One family of models: everything that this program needs to read, train, convert and write them.

    Attributes:
        model_type: its name in config.json.
        architecture: name of transformers' class, in the config.json that is written.
        names: values of --model-type-hf that mean this family.
        features: parts that it has.
        defaults: key of config.json → default in transformers' config class. A key that the class lacks is not listed.
        ignored: keys that transformers does not read for this family, although other families cannot have them.
        layer: tensors of one layer.
        embedding, final_norm, output: tensors outside the layers; a model with tied embeddings has no `output`.
        layer_prefix: of the Hugging Face names of a layer's tensors, with a place for the number of the layer.
        unused: endings of Hugging Face tensors that are no weights; Llama 2's files hold the rotary frequencies.
        for_flags: a model of which only flags tell the shape is written as this family if the features fit.

    Raises:
        ValueError: the features and the tensors of a layer disagree.
    """

    model_type: str
    architecture: str
    names: tuple[str, ...]
    features: FamilyFeatures
    defaults: Mapping[str, Any]
    layer: tuple[TensorRow, ...]
    ignored: tuple[str, ...] = ()
    embedding: TensorRow = EMBEDDING
    final_norm: TensorRow = FINAL_NORM
    output: TensorRow = OUTPUT
    layer_prefix: str = "model.layers.{}."
    unused: tuple[str, ...] = (".rotary_emb.inv_freq",)
    for_flags: bool = False

    def __post_init__(self) -> None:
        rows = {row.name for row in self.layer}
        for feature, present, name in (
            ("qkv_bias", self.features.qkv_bias, QKV_BIAS.name),
            ("qk_norm", self.features.qk_norm, Q_NORM.name),
            ("qk_norm", self.features.qk_norm, K_NORM.name),
        ):
            if present != (name in rows):
                raise ValueError(f"{self.model_type}: {feature} is {present}, but see {name} among its tensors")
