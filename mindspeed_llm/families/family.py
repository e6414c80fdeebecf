"""Describe a model family: its names, features, defaults of config.json and tensor table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mindspeed_llm.families.tensor_rows import (
    EMBEDDING,
    FC1_BIAS_NAME,
    FINAL_NORM,
    K_NORM,
    OUTPUT,
    Q_NORM,
    QKV_BIAS,
    TensorRow,
)

# never: all layers have full attention. optional: sliding-window attention only if use_sliding_window is true. default:
# sliding-window attention unless sliding_window is null.
Window = Literal["never", "optional", "default"]


@dataclass(frozen=True)
class FamilyFeatures:
    """Architectural features in which the families differ.

    Attributes:
        qkv_bias: whether the query, key and value projections have a bias.
        qk_norm: whether query and key of each head are normalised before the rotary embedding.
        tied_embeddings: whether a model may use one weight for the input embedding and the output layer.
        sliding_window: which models have layers with sliding-window attention.
        rope_scaling: supported types of rope scaling, as named in config.json, besides no scaling ("default").
        linear_bias: whether all linear layers of a layer have a bias, that of query, key and value included.
        layer_norm: whether the norms are LayerNorm, with a bias, instead of RMSNorm.
        gated_mlp: whether the MLP is SwiGLU; otherwise one matrix and GELU in its tanh approximation ("gelu_new").
        learned_positions: whether a table of `max_position_embeddings` rows is added to the embeddings; otherwise query
            and key are rotated.
    """

    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = True
    sliding_window: Window = "never"
    rope_scaling: tuple[str, ...] = ("llama3",)
    linear_bias: bool = False
    layer_norm: bool = False
    gated_mlp: bool = True
    learned_positions: bool = False


@dataclass(frozen=True)
class ModelFamily:
    """A model family: the complete description that is needed to read, train, convert and write its models.

    Attributes:
        model_type: `model_type` in config.json.
        architecture: name of the model class in transformers, for the config.json that is written.
        names: values of `--model-type-hf` for this family.
        features: architectural features.
        defaults: key of config.json → default in the config class of transformers. Keys that the class does not have
            are not listed. The keys have the names that most families use (defaults.COMMON).
        layer: tensors of one layer.
        key_names: key in `defaults` → name in the config.json of this family, where it differs.
        only: key of config.json → the only supported value; it is the default in transformers.
        ignored: keys of config.json that transformers does not read for this family; other families refuse them.
        embedding: the input embedding.
        positions: the position table, if the family has one.
        final_norm: the norm after the last layer.
        final_norm_bias: its bias, if it has one.
        output: the output layer, which a model with tied embeddings does not have.
        layer_prefix: prefix of the Hugging Face names of a layer's tensors; {} is the number of the layer.
        optional_prefix: prefix of Hugging Face names that folders saved without the output layer do not have.
        unused: endings of the names of Hugging Face tensors that are not weights, such as the rotary frequencies in the
            files of Llama 2.
        fits_flags: whether a model whose shape is known only from flags may be written as this family, if the features
            match.

    Raises:
        ValueError: the features do not match the tensors of a layer.
    """

    model_type: str
    architecture: str
    names: tuple[str, ...]
    features: FamilyFeatures
    defaults: Mapping[str, Any]
    layer: tuple[TensorRow, ...]
    key_names: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    embedding: TensorRow = EMBEDDING
    positions: TensorRow | None = None
    final_norm: TensorRow = FINAL_NORM
    final_norm_bias: TensorRow | None = None
    output: TensorRow = OUTPUT
    layer_prefix: str = "model.layers.{}."
    optional_prefix: str = ""
    unused: tuple[str, ...] = (".rotary_emb.inv_freq",)
    fits_flags: bool = False

    def __post_init__(self) -> None:
        rows = {row.name for row in self.layer}
        for feature, present, name in (
            ("qkv_bias", self.features.qkv_bias, QKV_BIAS.name),
            ("qk_norm", self.features.qk_norm, Q_NORM.name),
            ("qk_norm", self.features.qk_norm, K_NORM.name),
            ("linear_bias", self.features.linear_bias, FC1_BIAS_NAME),
        ):
            if present != (name in rows):
                article = "no" if present else "a"
                raise ValueError(f"{self.model_type}: {feature} is {present}, but a layer has {article} tensor {name}")
        outside = (
            ("learned_positions", self.features.learned_positions, self.positions),
            ("layer_norm", self.features.layer_norm, self.final_norm_bias),
        )
        for feature, present, row in outside:
            if present != (row is not None):
                raise ValueError(f"{self.model_type}: {feature} is {present}, but its tensor is {row}")

    def key_name(self, key: str) -> str:
        """Return the name in config.json of a key in `defaults`."""
        return self.key_names.get(key, key)
