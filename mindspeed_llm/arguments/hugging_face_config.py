"""Convert the config.json of a Hugging Face folder into Megatron's flags.

config.json describes the shape of the model, so that `--load HF_DIR` needs no shape flags. A shape flag that is given
anyway must agree with it. A model with unsupported properties (another activation, another kind of rope scaling,
quantised weights) is refused; the error lists all of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.config_json import format_value, head_size, read_config_keys
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import FamilyFeatures, ModelFamily, families, find_family
from mindspeed_llm.storage.checkpoint_directory import TRACKER
from mindspeed_llm.storage.hub_names import download_advice
from mindspeed_llm.storage.safe_open import read_file_text


@dataclass(frozen=True)
class HuggingFaceConfig:
    """A parsed config.json.

    Attributes:
        folder: directory that contains the file.
        raw: content of the file.
        family: model family that its model_type names.
        fields: field of ModelArguments → value.
        window: width of sliding-window attention in tokens; None if no layer uses it. Attention within sequences of at
            most this length does not change.
    """

    folder: Path
    raw: dict[str, Any]
    family: ModelFamily
    fields: dict[str, Any]
    window: int | None

    @property
    def model(self) -> ModelArguments:
        """Shape of the model as arguments."""
        return ModelArguments(**self.fields)

    @property
    def vocab_size(self) -> int:
        """Vocabulary size: rows of the embedding."""
        return int(self.fields["vocab_size"])


def is_hugging_face_folder(folder: str | Path) -> bool:
    """Return whether a folder contains a Hugging Face model and no checkpoint of megatron-core."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / TRACKER).exists()


def has_hugging_face_weights(folder: str | Path) -> bool:
    """Return whether a folder contains config.json and weights of a Hugging Face model, and no Megatron checkpoint.

    Such a folder must not be used for checkpoints: `is_hugging_face_folder` would become false, and `--load` would read
    the checkpoint instead of the model.
    """
    weights = ("*.safetensors", "pytorch_model*.bin")
    return is_hugging_face_folder(folder) and any(any(Path(folder).glob(pattern)) for pattern in weights)


def read_config(folder: str | Path) -> HuggingFaceConfig:
    """Read the config.json of a folder.

    Raises:
        ConfigError: the file is missing or damaged, or describes an unsupported model. One line per problem.
    """
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(read_file_text(path))
    except FileNotFoundError as error:
        advice = download_advice(folder)
        raise ConfigError(f"{path}: no such file; give the folder of a Hugging Face model{advice}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except RecursionError as error:  # Python's JSON parser recurses per level of nesting
        raise ConfigError(f"{path}: cannot be read (its JSON is nested too deeply)") from error
    return parse_config(Path(folder), raw)


def parse_config(folder: Path, raw: Any) -> HuggingFaceConfig:
    """Parse the content of a config.json.

    Args:
        folder: directory of the file, for messages.
        raw: content of the file.

    Raises:
        ConfigError: the file describes an unsupported model. One line per problem.
    """
    path = folder / "config.json"
    kind = raw.get("model_type") if isinstance(raw, dict) else raw
    family = find_family(kind) if isinstance(raw, dict) else None
    if family is None:
        supported = ", ".join(each.model_type for each in families())
        raise ConfigError(f"{path}: model_type {format_value(kind)} is not supported; supported are {supported}")
    keys, problems = read_config_keys(raw, family)
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return HuggingFaceConfig(folder, raw, family, _fields(keys, family.features), keys.get("sliding_window"))


def _fields(keys: dict[str, Any], features: FamilyFeatures) -> dict[str, Any]:
    """Return field of ModelArguments → value, from the keys of config.json."""
    heads, groups = keys["num_attention_heads"], keys["num_key_value_heads"]
    rope = keys["rope_parameters"]  # empty for learned positions
    scaled = rope.get("rope_type", rope.get("type")) == "llama3"
    fields = {
        "num_layers": keys["num_hidden_layers"],
        "hidden_size": keys["hidden_size"],
        "num_attention_heads": heads,
        "ffn_hidden_size": keys["intermediate_size"],
        "kv_channels": head_size(keys),
        "group_query_attention": groups != heads,
        "num_query_groups": groups if groups != heads else None,
        "max_position_embeddings": keys["max_position_embeddings"],
        "disable_bias_linear": not features.linear_bias,
        # A bias in all linear layers includes this one.
        "add_qkv_bias": features.qkv_bias and not features.linear_bias,
        "qk_layernorm": features.qk_norm,
        "swiglu": features.gated_mlp,
        "normalization": "LayerNorm" if features.layer_norm else "RMSNorm",
        "norm_epsilon": float(keys["rms_norm_eps"]),
        "position_embedding_type": "learned_absolute" if features.learned_positions else "rope",
        "use_rope_scaling": scaled,
        "untie_embeddings_and_output_weights": not keys["tie_word_embeddings"],
        "vocab_size": keys["vocab_size"],
        # The embedding of a Hugging Face model has exactly vocab_size rows.
        "make_vocab_size_divisible_by": 1,
    }
    if rope:
        fields["rotary_base"] = float(rope["rope_theta"])
    if scaled:
        fields["rope_scaling_factor"] = float(rope["factor"])
    return fields
