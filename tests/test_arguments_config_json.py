"""config.json against transformers' own config classes, and values that no model has."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mindspeed_llm.arguments.hugging_face_config import parse_config, read_config
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import families

DEFAULTS = {family.model_type: family.defaults for family in families()}
FAMILIES = list(DEFAULTS)
# Kept under other names, or not at all, by transformers' classes; the test of random files covers them.
NESTED = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
ODD_VALUES: list[Any] = [None, "text", "", True, False, [], [1], {}, {"a": 1}, -1, 0, 10**9, 10**400, 1.5]
ODD_VALUES += [float("nan"), float("inf"), -float("inf"), 1e308]


def config_class(family: str) -> Any:
    import transformers

    return getattr(transformers, f"{family.capitalize()}Config")


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    theirs = config_class(family)
    declared = {field.name: field.default for field in dataclasses.fields(theirs)}
    ours = {key: default for key, default in DEFAULTS[family].items() if key not in NESTED}
    assert ours == {key: declared[key] for key in ours}
    assert DEFAULTS[family]["rope_theta"] == theirs.default_theta
    shape = {"head_dim", "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window", "layer_types"}
    assert shape & declared.keys() <= ours.keys()


def drawn(draw: random.Random, family: str) -> dict[str, Any]:
    """A random config.json in which every key may be missing."""
    choices: dict[str, list[Any]] = {
        "num_hidden_layers": [4, 30],
        "hidden_size": [512, 8192],
        "num_attention_heads": [64],
        "num_key_value_heads": [8, 32],
        "head_dim": [64, 128],
        "intermediate_size": [96],
        "vocab_size": [300],
        "max_position_embeddings": [512],
        "rms_norm_eps": [1e-5],
        "rope_theta": [5e5],
        "tie_word_embeddings": [True, False],
        "rope_parameters": [None, {"rope_type": "default"}, {"rope_type": "default", "rope_theta": 7e5}],
        "rope_scaling": [None, {"type": "default", "rope_theta": 9e5}],
        "sliding_window": [None, 256],
        "use_sliding_window": [True, False],
        "max_window_layers": [2, 29, 40],
    }
    raw = {key: draw.choice(values) for key, values in choices.items() if draw.random() < 0.5}
    if draw.random() < 0.3 and family.startswith("qwen"):
        layers = raw.get("num_hidden_layers", 32)
        raw["layer_types"] = [draw.choice(["full_attention", "sliding_attention"])] * layers
    return raw


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_keys_mean_what_they_mean_to_transformers(family: str) -> None:
    draw = random.Random(family)
    for _ in range(60):
        raw = drawn(draw, family)
        theirs = config_class(family)(**json.loads(json.dumps(raw)))
        ours = parse_config(Path(), {"model_type": family, **raw})
        model = ours.model
        head = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        window = getattr(theirs, "sliding_window", None)
        if window and getattr(theirs, "layer_types", None) and "sliding_attention" not in theirs.layer_types:
            window = None
        expected = (
            (theirs.num_hidden_layers, theirs.hidden_size, theirs.intermediate_size, theirs.vocab_size),
            (theirs.num_attention_heads, theirs.num_key_value_heads, head),
            (theirs.rms_norm_eps, theirs.rope_parameters["rope_theta"], theirs.max_position_embeddings),
            (theirs.tie_word_embeddings, window if family != "llama" else None),
        )
        assert expected == (
            (model.num_layers, model.hidden_size, model.ffn_size, ours.vocab_size),
            (model.num_attention_heads, model.query_groups, model.head_size),
            (model.norm_epsilon, model.rotary_base, model.max_position_embeddings),
            (not model.untie_embeddings_and_output_weights, ours.window),
        ), raw


def test_a_mistral_without_a_window_has_4096() -> None:
    assert parse_config(Path(), {"model_type": "mistral"}).window == 4096
    assert parse_config(Path(), {"model_type": "mistral", "sliding_window": None}).window is None
    assert parse_config(Path(), {"model_type": "mistral"}).model.query_groups == 8
    assert parse_config(Path(), {"model_type": "llama", "sliding_window": 5}).window is None  # its class knows none


@pytest.mark.parametrize("family", FAMILIES)
def test_unusual_values_are_accepted_or_reported_in_one_line_each(family: str) -> None:
    inner = ["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "original_max_position_embeddings"]
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 8192
    keys = {*DEFAULTS[family], "head_dim", "attention_bias", "mlp_bias", "quantization_config", "layer_types"}
    cases = [{key: value} for key in sorted(keys) for value in ODD_VALUES]
    cases += [{"rope_scaling": {**llama3, key: value}} for key in inner for value in ODD_VALUES]
    outcomes = [outcome({"model_type": family, **case}) for case in cases]
    assert all(len(problems) <= 1 and len("".join(problems)) < 200 for problems in outcomes)
    assert sum(map(len, outcomes)) > len(cases) / 2


def outcome(raw: dict[str, Any]) -> list[str]:
    """The problems of a config.json; none if its fields can be used."""
    try:
        fields = parse_config(Path(), raw).fields
    except ConfigError as error:
        return error.problems
    assert 0 < fields["norm_epsilon"] < 1 and 0 < fields["rotary_base"] < float("inf"), raw
    return []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 30_000_000),
        ("rms_norm_eps", None),
        ("rms_norm_eps", "1e-6"),
        ("rope_theta", None),
        ("rope_parameters", "default"),
        ("rope_parameters", {"rope_theta": None}),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}),
        ("rope_scaling", [8.0]),
        ("sliding_window", "4096"),
        ("sliding_window", -1),
        ("tie_word_embeddings", "false"),
        ("num_key_value_heads", 5),
        ("num_attention_heads", 8000),
        ("eos_token_id", [2, "x"]),
    ],
)
def test_faults_are_named(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral", key: value}))
    with pytest.raises(ConfigError) as refusal:
        read_config(tmp_path)
    name = "rope_theta" if isinstance(value, dict) and "rope_theta" in value else key
    assert len(refusal.value.problems) == 1 and name in str(refusal.value), refusal.value.problems


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1]", '"text"', "null", "7", "", "\xff\xfe"])
def test_a_config_that_is_not_an_object_is_reported_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as refusal:
        read_config(tmp_path)
    assert len(refusal.value.problems) == 1 and len(str(refusal.value)) < 400
