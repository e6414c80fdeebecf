"""Read and validate the keys of a Hugging Face config.json.

A missing key has the default of transformers' config class, so that a folder describes the same model in both programs:
a Mistral without `sliding_window` has a window of 4,096 tokens, and without `num_key_value_heads` it has 8 of them.
`tests/test_arguments_config_json.py` compares the defaults of each family with these classes.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from mindspeed_llm.arguments.bounds import integer_bounds
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.families import FamilyFeatures, ModelFamily

# Values that Llama 3.1 and 3.2 publish. megatron-core has them as constants, so that no others can be supported.
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}

# Keys with a corresponding flag: key → field of ModelArguments.
_FLAGS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "intermediate_size": "ffn_hidden_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
}
# Bounds of the integer keys. No real model reaches them, but a damaged file may: 30,000,000 layers would fill the
# memory before any other check.
BOUNDS: dict[str, tuple[int, int]] = {
    **{key: integer_bounds(ModelArguments, name) for key, name in _FLAGS.items()},
    "max_window_layers": (0, 1 << 31),
}
# Names of the activation function: SwiGLU's, and GELU in its tanh approximation.
GATED_ACTIVATIONS = ("silu", "swish")
GELU_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
SWITCHES = ("tie_word_embeddings", "use_sliding_window", "attention_bias", "mlp_bias")
_NOT_BUILT = {
    "attention_bias": "attention_bias true is not supported for this family: it adds a bias to the output projection",
    "mlp_bias": "mlp_bias true is not supported",
}


def read_config_keys(raw: Mapping[str, Any], family: ModelFamily) -> tuple[dict[str, Any], list[str]]:
    """Read the keys of a config.json that affect the model.

    Args:
        raw: content of the file.
        family: family of the model.

    Returns:
        key → value, from config.json or the default; keys have the names of `family.defaults`. `rope_parameters`
            contains all rotary settings, none for learned positions; `sliding_window` is the window in tokens if any
            layer uses one, otherwise None.
        One line per unusable value. If there are any, the first result must not be used.
    """
    # transformers accepts the common name of a key for every family; the family's own takes precedence.
    keys = {key: raw.get(family.key_name(key), raw.get(key, default)) for key, default in family.defaults.items()}
    problems = [*_whole_number_problems(keys, family), *_other_problems(raw, keys, family)]
    if family.features.learned_positions:
        keys["rope_parameters"] = {}
    else:
        keys["rope_parameters"] = _rotary_settings(keys)
        problems += _rotary_problems(raw, keys, family.features)
    problems += _window_problems(keys, family.features)
    # The checks below divide these values, so that all of them must be valid.
    if not problems:
        keys["num_key_value_heads"] = keys.get("num_key_value_heads") or keys["num_attention_heads"]
        keys["head_dim"] = keys.get("head_dim") or (None if "head_dim" in family.ignored else raw.get("head_dim"))
        problems += _shape_problems(keys, family)
        keys["sliding_window"] = _window(keys, family.features)
    return keys, problems


def format_value(value: object) -> str:
    """Format a value as Python does, shortened so that it fits into a message."""
    return reprlib.repr(value)


def is_integer(value: object, low: int, high: int) -> bool:
    """Return whether `value` is an integer between `low` and `high`, both inclusive. Booleans are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object, low: float = -math.inf) -> bool:
    """Return whether `value` is a finite number greater than `low`. Booleans are not numbers."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value)) and float(value) > low
    except OverflowError:  # JSON integers have any size: 10**400 is not a float
        return False


def _whole_number_problems(keys: Mapping[str, Any], family: ModelFamily) -> Iterator[str]:
    for key, (low, high) in BOUNDS.items():
        # null means that the value follows from other keys.
        is_derived = key == "num_key_value_heads" or family.defaults.get(key) is None
        if key in keys and not (keys[key] is None and is_derived) and not is_integer(keys[key], low, high):
            yield f"{family.key_name(key)} is {format_value(keys[key])}, not a whole number from {low} to {high:,}"


def _other_problems(raw: Mapping[str, Any], keys: Mapping[str, Any], family: ModelFamily) -> Iterator[str]:
    activations = GATED_ACTIVATIONS if family.features.gated_mlp else GELU_ACTIVATIONS  # two names of one function
    if keys["hidden_act"] not in activations:
        supported = f"{activations[0]!r} ({'--swiglu' if family.features.gated_mlp else 'without --swiglu'})"
        name = family.key_name("hidden_act")
        yield f"{name} {format_value(keys['hidden_act'])} is not supported; only {supported} is"
    if not is_number(keys["rms_norm_eps"], 0) or keys["rms_norm_eps"] >= 1:
        name = family.key_name("rms_norm_eps")
        yield f"{name} is {format_value(keys['rms_norm_eps'])}, not a number between 0 and 1"
    for key, value in family.only.items():
        if raw.get(key, value) is not value:
            yield f"{key} {format_value(raw[key])} is not supported; only {str(value).lower()} is"
    for key in SWITCHES:
        value = keys.get(key, raw.get(key))
        if key in keys and not isinstance(value, bool):
            yield f"{key} is {format_value(value)}, not true or false"
        elif value and key in _NOT_BUILT and key not in family.ignored:
            yield _NOT_BUILT[key]
    if keys["tie_word_embeddings"] is True and not family.features.tied_embeddings:
        yield "tie_word_embeddings true is not supported for this family"
    low, high = BOUNDS["head_dim"]
    # Qwen2's config class does not declare head_dim, but its layers read it.
    extra = raw.get("head_dim") if "head_dim" not in keys and "head_dim" not in family.ignored else None
    if extra is not None and not is_integer(extra, low, high):
        yield f"head_dim is {format_value(extra)}, not a whole number from {low} to {high:,}"
    if raw.get("quantization_config"):
        yield "quantised weights cannot be converted; use the folder of the unquantised model"
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if keys[key] is not None and not token_ids(keys[key], several=key == "eos_token_id"):
            yield f"{key} is {format_value(keys[key])}, not a token id" + (" or a list of token ids" * (key[0] == "e"))


def token_ids(value: object, several: bool = True) -> list[int]:
    """Return the token ids of a value such as eos_token_id; an empty list if the value is invalid.

    Args:
        value: a token id or a list of token ids.
        several: whether a list is allowed.
    """
    ids: list[Any] = value if isinstance(value, list) and several else [value]
    return ids if all(is_integer(token, -1, BOUNDS["vocab_size"][1]) for token in ids) else []


def _rotary_settings(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Merge all rotary settings into one dictionary.

    transformers 5 stores them in rope_parameters; earlier versions use rope_theta and rope_scaling. If both exist,
    rope_scaling takes precedence, as in transformers.
    """
    nested = keys["rope_scaling"] or keys["rope_parameters"] or {}
    outside = {"rope_theta": keys["rope_theta"], "partial_rotary_factor": keys["partial_rotary_factor"]}
    return {**outside, **nested} if isinstance(nested, dict) else outside


def _rotary_problems(raw: Mapping[str, Any], keys: Mapping[str, Any], features: FamilyFeatures) -> Iterator[str]:
    given = {key: raw.get(key) for key in ("rope_parameters", "rope_scaling")}
    invalid = {key: value for key, value in given.items() if value is not None and not isinstance(value, dict)}
    yield from (f"{key} is {format_value(value)}, not an object" for key, value in invalid.items())
    if invalid:
        return
    rope = keys["rope_parameters"]
    if any(isinstance(value, dict) for value in rope.values()):
        yield "rope_parameters differ between layer types, which is not supported"
        return
    if not is_number(rope["rope_theta"], 0):
        yield f"rope_theta is {format_value(rope['rope_theta'])}, not a number above 0"
    if rope["partial_rotary_factor"] not in (None, 1.0) or rope["partial_rotary_factor"] is True:
        yield f"partial_rotary_factor {format_value(rope['partial_rotary_factor'])} is not supported; only 1.0 is"
    kind = rope.get("rope_type", rope.get("type", "default"))
    supported = ("default", *features.rope_scaling)
    if kind not in supported:
        names = " and ".join(map(repr, supported))
        verb = "is" if len(supported) == 1 else "are"
        yield f"rope scaling type {format_value(kind)} is not supported; only {names} {verb}"
    elif kind == "llama3":
        yield from _llama3_problems(raw, keys)


def _llama3_problems(raw: Mapping[str, Any], keys: Mapping[str, Any]) -> Iterator[str]:
    length = "original_max_position_embeddings"
    rope = {length: keys["max_position_embeddings"], **keys["rope_parameters"]}
    # At the top level the key takes precedence, as in transformers.
    if length in raw:
        rope[length] = raw[length]
    for key, constant in LLAMA3_ROPE.items():
        if rope.get(key) != constant or isinstance(rope[key], bool):
            value = format_value(rope.get(key))
            yield f"rope scaling: {key} is {value}; only {constant}, as in Llama 3.1 and 3.2, is supported"
    if not is_number(rope.get("factor")) or rope["factor"] < 1:
        yield f"rope scaling: factor is {format_value(rope.get('factor'))}, not a number of at least 1"


def _window_problems(keys: Mapping[str, Any], features: FamilyFeatures) -> Iterator[str]:
    if features.sliding_window == "never":
        return
    used, window = _may_have_window(keys, features), keys["sliding_window"]
    # transformers ignores the value if the window is switched off, so that any integer is valid there.
    low, high = (1, 1 << 40) if used is True else (-(1 << 63), 1 << 63)
    if window is not None and not is_integer(window, low, high):
        yield f"sliding_window is {format_value(window)}, not a whole number above 0 or null"
    layers = keys.get("layer_types")
    if layers is None:
        return
    if not isinstance(layers, list) or any(layer not in ("full_attention", "sliding_attention") for layer in layers):
        yield f"layer_types is {format_value(layers)}, not a list of 'full_attention' and 'sliding_attention'"
    elif is_integer(keys["num_hidden_layers"], 1, 1 << 31) and len(layers) != keys["num_hidden_layers"]:
        yield f"layer_types has {len(layers)} entries for num_hidden_layers {keys['num_hidden_layers']}"


def _shape_problems(keys: Mapping[str, Any], family: ModelFamily) -> Iterator[str]:
    heads, groups, size = keys["num_attention_heads"], keys["num_key_value_heads"], head_size(keys)
    if heads % groups:
        yield f"num_attention_heads {heads} is not a multiple of num_key_value_heads {groups}"
    if family.features.learned_positions:
        if keys["hidden_size"] % heads:
            names = family.key_name("hidden_size"), family.key_name("num_attention_heads")
            yield f"{names[0]} {keys['hidden_size']} is not a multiple of {names[1]} {heads}"
        return
    if size < 1 or size % 2:
        origin = "head_dim" if keys["head_dim"] else "hidden_size / num_attention_heads"
        yield f"{origin} is {size}; rotary positions need an even number above 0"


def head_size(keys: Mapping[str, Any]) -> int:
    """Return the number of channels of one attention head.

    Args:
        keys: keys of `read_config_keys`.
    """
    return int(keys["head_dim"] or keys["hidden_size"] // keys["num_attention_heads"])


def _may_have_window(keys: Mapping[str, Any], features: FamilyFeatures) -> bool:
    """Return whether a model of a family with these features uses `sliding_window`."""
    if features.sliding_window == "optional":
        return keys["use_sliding_window"] is True
    return features.sliding_window == "default"


def _window(keys: Mapping[str, Any], features: FamilyFeatures) -> int | None:
    """Return the window in tokens of the sliding-attention layers; None if no layer uses it."""
    window = keys.get("sliding_window")
    if window is None or not _may_have_window(keys, features):
        return None
    if keys.get("layer_types") is not None:
        used = "sliding_attention" in keys["layer_types"]
    else:
        # transformers: layers from max_window_layers on have the window, the ones before attend to all tokens.
        used = keys.get("max_window_layers", 0) < keys["num_hidden_layers"]
    return int(window) if used else None
