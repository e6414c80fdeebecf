"""config.json of a Hugging Face folder, in the words of Megatron's flags.

A folder says the shape of its model itself, so that `--load HF_DIR` needs no shape flags; a flag that is given all the
same must agree. What these models do not share with the ones built here (another activation, another kind of rope
scaling, quantised weights) is refused by name, all of it at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.model import ModelArguments
from mindspeed_llm.errors import ConfigError

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")  # model_type in config.json
# Llama 3.1 and 3.2 publish these; megatron-core has them as constants.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
REQUIRED = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
TRACKER = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True)
class HuggingFaceConfig:
    """What a config.json says.

    Attributes:
        folder: where it lies.
        raw: its content.
        family: one of FAMILIES.
        fields: fields of ModelArguments.
        window: width of sliding-window attention; a sequence up to it is not affected. None without.
    """

    folder: Path
    raw: dict[str, Any]
    family: str
    fields: dict[str, Any]
    window: int | None

    @property
    def model(self) -> ModelArguments:
        """The shape as arguments."""
        return ModelArguments(**self.fields)

    @property
    def vocab_size(self) -> int:
        return int(self.raw["vocab_size"])


def is_hugging_face(folder: str | Path) -> bool:
    """Whether a folder holds a Hugging Face model, rather than a checkpoint in Megatron's layout."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / TRACKER).exists()


def holds_model(folder: str | Path) -> bool:
    """Whether a folder holds config.json and weights as Hugging Face models do, and no checkpoint in Megatron's layout.

    A checkpoint written there would take its place: `is_hugging_face` would be false, and `--load` read the checkpoint.
    """
    weights = ("*.safetensors", "pytorch_model*.bin")
    return is_hugging_face(folder) and any(any(Path(folder).glob(pattern)) for pattern in weights)


def read_config(folder: str | Path) -> HuggingFaceConfig:
    """Read config.json.

    Raises:
        ConfigError: it is missing or damaged, or describes a model that is not built; one line for each fault.
    """
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: is not there; give the folder of a Hugging Face model") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return describe(Path(folder), raw)


def describe(folder: Path, raw: Any) -> HuggingFaceConfig:
    """What the content of a config.json says; `folder` is named in messages.

    Raises:
        ConfigError: it describes a model that is not built; one line for each fault.
    """
    path = folder / "config.json"
    if not isinstance(raw, dict) or raw.get("model_type") not in FAMILIES:
        kind = raw.get("model_type") if isinstance(raw, dict) else raw
        raise ConfigError(f"{path}: model_type {kind!r} is not built; there are {', '.join(FAMILIES)}")
    problems = [f"{path}: {problem}" for problem in _problems(raw)]
    if problems:
        raise ConfigError(problems)
    return HuggingFaceConfig(folder, raw, raw["model_type"], _fields(raw), _window(raw))


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings: transformers 5 keeps them in rope_parameters, earlier ones in rope_theta and rope_scaling."""
    nested = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return {"rope_theta": raw.get("rope_theta", 10000.0), **nested} if isinstance(nested, dict) else {}


def _problems(raw: dict[str, Any]) -> Iterator[str]:
    for key in REQUIRED:
        value = raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{key} is {value!r}, not a whole number above 0"
    for key in ("num_key_value_heads", "head_dim"):
        value = raw.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            yield f"{key} is {value!r}, not a whole number above 0"
    if raw.get("hidden_act", "silu") != "silu":
        yield f"hidden_act {raw['hidden_act']!r} is not built; there is 'silu' (--swiglu)"
    if raw["model_type"] != "qwen2" and raw.get("attention_bias"):
        yield "attention_bias true is not built for this family: it puts a bias on the output projection as well"
    if raw.get("mlp_bias"):
        yield "mlp_bias true is not built"
    if raw.get("quantization_config"):
        yield "quantised weights cannot be converted; use the folder of the unquantised model"
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        yield "partial_rotary_factor is not built"
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        for key, constant in LLAMA3_ROPE.items():
            if rope.get(key) != constant:
                yield f"rope scaling: {key} is {rope.get(key)!r}; built is {constant}, as Llama 3.1 and 3.2 have it"
        if not isinstance(rope.get("factor"), int | float) or rope["factor"] < 1:
            yield f"rope scaling: factor is {rope.get('factor')!r}, not a number from 1 on"
    elif kind != "default":
        yield f"rope scaling of the kind {kind!r} is not built; there are 'default' and 'llama3'"


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    heads, groups = raw["num_attention_heads"], raw.get("num_key_value_heads") or raw["num_attention_heads"]
    rope = _rope(raw)
    scaled = rope.get("rope_type", rope.get("type")) == "llama3"
    default_head = 128 if raw["model_type"] == "qwen3" else raw["hidden_size"] // heads
    fields = {
        "num_layers": raw["num_hidden_layers"],
        "hidden_size": raw["hidden_size"],
        "num_attention_heads": heads,
        "ffn_hidden_size": raw["intermediate_size"],
        "kv_channels": raw.get("head_dim") or default_head,
        "group_query_attention": groups != heads,
        "num_query_groups": groups if groups != heads else None,
        "max_position_embeddings": raw.get("max_position_embeddings"),
        "disable_bias_linear": True,
        "add_qkv_bias": raw["model_type"] == "qwen2",
        "qk_layernorm": raw["model_type"] == "qwen3",
        "swiglu": True,
        "normalization": "RMSNorm",
        "norm_epsilon": float(raw.get("rms_norm_eps", 1e-6)),
        "position_embedding_type": "rope",
        "rotary_base": float(rope["rope_theta"]),
        "use_rope_scaling": scaled,
        "untie_embeddings_and_output_weights": not raw.get("tie_word_embeddings", False),
        "vocab_size": raw["vocab_size"],
        "make_vocab_size_divisible_by": 1,
    }
    if scaled:
        fields["rope_scaling_factor"] = float(rope["factor"])
    return fields


def _window(raw: dict[str, Any]) -> int | None:
    window = raw.get("sliding_window")
    if raw["model_type"] in ("qwen2", "qwen3") and not raw.get("use_sliding_window", False):
        return None
    return int(window) if window else None
