"""config.json of a Hugging Face folder, in the words of Megatron's flags.

A folder says the shape of its model itself, so that `--load HF_DIR` needs no shape flags; a flag that is given all the
same must agree. What these models do not share with the ones built here (another activation, another kind of rope
scaling, quantised weights) is refused by name, all of it at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.model import ModelArguments
from mindspeed_llm.arguments.parsing import flags_of
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


def folder_of_load(argv: Sequence[str]) -> Path | None:
    """The Hugging Face folder that --load names, or None: no --load, or a checkpoint of Megatron's layout."""
    value = None
    for number, word in enumerate(argv):
        if word == "--load" and number + 1 < len(argv):
            value = argv[number + 1]
        elif word.startswith("--load="):
            value = word.partition("=")[2]
    return Path(value) if value and is_hugging_face(value) else None


def shape_flags(config: HuggingFaceConfig, argv: Sequence[str]) -> list[str]:
    """The words that say the model's shape, for every flag that `argv` leaves out."""
    given = {word.partition("=")[0] for word in argv}
    if "--padded-vocab-size" in given:
        given.add("--make-vocab-size-divisible-by")
    words: list[str] = []
    for flag in flags_of(ModelArguments):
        value = config.fields.get(flag.field.name)
        if value is None or value is False or not given.isdisjoint(flag.names):
            continue
        words += [flag.name] if value is True else [flag.name, repr(value) if isinstance(value, float) else str(value)]
    return words


def disagreements(config: HuggingFaceConfig, model: ModelArguments, seq_length: int) -> list[str]:
    """One line for each flag that says something else than config.json."""
    theirs = config.model
    path = config.folder / "config.json"
    pairs = [
        ("--num-layers", model.num_layers, theirs.num_layers),
        ("--hidden-size", model.hidden_size, theirs.hidden_size),
        ("--ffn-hidden-size", model.ffn_size, theirs.ffn_size),
        ("--num-attention-heads", model.num_attention_heads, theirs.num_attention_heads),
        ("--num-query-groups", model.query_groups, theirs.query_groups),
        ("--kv-channels", model.head_size, theirs.head_size),
        ("--disable-bias-linear", model.disable_bias_linear, theirs.disable_bias_linear),
        ("--add-qkv-bias", model.add_qkv_bias, theirs.add_qkv_bias),
        ("--qk-layernorm", model.qk_layernorm, theirs.qk_layernorm),
        ("--norm-epsilon", model.norm_epsilon, theirs.norm_epsilon),
        ("--rotary-base", model.rotary_base, theirs.rotary_base),
        ("--rotary-percent", model.rotary_percent, theirs.rotary_percent),
        ("--use-rope-scaling", model.use_rope_scaling, theirs.use_rope_scaling),
        (
            "--untie-embeddings-and-output-weights",
            model.untie_embeddings_and_output_weights,
            theirs.untie_embeddings_and_output_weights,
        ),
        ("--vocab-size", model.vocab_size, theirs.vocab_size),
    ]
    if theirs.use_rope_scaling:
        pairs.append(("--rope-scaling-factor", model.rope_scaling_factor, theirs.rope_scaling_factor))
    if model.padded_vocab_size is not None:
        pairs.append(("--padded-vocab-size", model.padded_vocab_size, theirs.vocab_size))
    lines = [
        f"{flag} {_said(own)}: {path} says {_said(value)}; leave the flag out"
        if own is not True
        else f"{flag}: {path} says otherwise; leave the flag out"
        for flag, own, value in pairs
        if own != value
    ]
    longest = theirs.max_position_embeddings
    if longest is not None and (model.max_position_embeddings or 0) > longest:
        lines.append(f"--max-position-embeddings {model.max_position_embeddings}: {path} says {longest}")
    if config.window is not None and seq_length > config.window:
        lines.append(
            f"--seq-length {seq_length}: {path} has a sliding window of {config.window}, which is not built; "
            "use at most that"
        )
    return lines


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
