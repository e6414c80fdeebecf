"""config.json of a Hugging Face folder, in the words of Megatron's flags.

A folder says the shape of its model itself, so that `--load HF_DIR` needs no shape flags; a flag that is given all the
same must agree. What these models do not share with the ones built here (another activation, another kind of rope
scaling, quantised weights) is refused by name, all of it at once.
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
from mindspeed_llm.storage.safe_open import read_file_text


@dataclass(frozen=True)
class HuggingFaceConfig:
    """What a config.json says.

    Attributes:
        folder: where it lies.
        raw: its content.
        family: that its model_type names.
        fields: fields of ModelArguments.
        window: width of sliding-window attention; a sequence up to it is not affected. None without.
    """

    folder: Path
    raw: dict[str, Any]
    family: ModelFamily
    fields: dict[str, Any]
    window: int | None

    @property
    def model(self) -> ModelArguments:
        """The shape as arguments."""
        return ModelArguments(**self.fields)

    @property
    def vocab_size(self) -> int:
        return int(self.fields["vocab_size"])


def is_hugging_face_folder(folder: str | Path) -> bool:
    """Whether a folder holds a Hugging Face model, rather than a checkpoint in Megatron's layout."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / TRACKER).exists()


def has_hugging_face_weights(folder: str | Path) -> bool:
    """Whether a folder holds config.json and weights as Hugging Face models do, and no checkpoint in Megatron's layout.

    A checkpoint written there would take its place: `is_hugging_face_folder` would be false, and `--load` would read
    the checkpoint.
    """
    weights = ("*.safetensors", "pytorch_model*.bin")
    return is_hugging_face_folder(folder) and any(any(Path(folder).glob(pattern)) for pattern in weights)


def read_config(folder: str | Path) -> HuggingFaceConfig:
    """Read config.json.

    Raises:
        ConfigError: it is missing or damaged, or describes a model that is not built; one line for each fault.
    """
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(read_file_text(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: is not there; give the folder of a Hugging Face model") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: cannot be read (nested too deep)") from error
    return parse_config(Path(folder), raw)


def parse_config(folder: Path, raw: Any) -> HuggingFaceConfig:
    """What the content of a config.json says; `folder` is named in messages.

    Raises:
        ConfigError: it describes a model that is not built; one line for each fault.
    """
    path = folder / "config.json"
    kind = raw.get("model_type") if isinstance(raw, dict) else raw
    family = find_family(kind) if isinstance(raw, dict) else None
    if family is None:
        built = ", ".join(one.model_type for one in families())
        raise ConfigError(f"{path}: model_type {format_value(kind)} is not built; there are {built}")
    keys, problems = read_config_keys(raw, family)
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return HuggingFaceConfig(folder, raw, family, _fields(keys, family.features), keys.get("sliding_window"))


def _fields(keys: dict[str, Any], features: FamilyFeatures) -> dict[str, Any]:
    """Fields of ModelArguments from the keys of config.json."""
    heads, groups = keys["num_attention_heads"], keys["num_key_value_heads"]
    rope = keys["rope_parameters"]
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
        "disable_bias_linear": True,
        "add_qkv_bias": features.qkv_bias,
        "qk_layernorm": features.qk_norm,
        "swiglu": True,
        "normalization": "RMSNorm",
        "norm_epsilon": float(keys["rms_norm_eps"]),
        "position_embedding_type": "rope",
        "rotary_base": float(rope["rope_theta"]),
        "use_rope_scaling": scaled,
        "untie_embeddings_and_output_weights": not keys["tie_word_embeddings"],
        "vocab_size": keys["vocab_size"],
        "make_vocab_size_divisible_by": 1,
    }
    if scaled:
        fields["rope_scaling_factor"] = float(rope["factor"])
    return fields
