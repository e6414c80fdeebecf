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

BY_NAME = {family.model_type: family for family in families()}
FAMILIES = list(BY_NAME)
ROTARY = [name for name, family in BY_NAME.items() if not family.features.learned_positions]
# Kept under other names, or not at all, by transformers' classes; the test of random files covers them.
NESTED = {"rope_theta", "rope_scaling", "partial_rotary_factor"}
ODD_VALUES: list[Any] = [None, "text", "", True, False, [], [1], {}, {"a": 1}, -1, 0, 10**9, 10**400, 1.5]
SUFFIXES = {name: "LMHeadModel" if name == "gpt2" else "ForCausalLM" for name in FAMILIES}
ODD_VALUES += [float("nan"), float("inf"), -float("inf"), 1e308]


def config_class(family: str) -> Any:
    import transformers

    return getattr(transformers, f"{BY_NAME[family].architecture.removesuffix(SUFFIXES[family])}Config")


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family: str) -> None:
    theirs, own = config_class(family), BY_NAME[family]
    declared = {field.name: field.default for field in dataclasses.fields(theirs)}
    ours = {own.key_name(key): default for key, default in own.defaults.items() if key not in NESTED} | own.only
    assert ours == {key: declared[key] for key in ours}
    assert {key: name for key, name in own.key_names.items() if key in theirs.attribute_map} == theirs.attribute_map
    if family in ROTARY:
        assert own.defaults["rope_theta"] == theirs.default_theta
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


def test_missing_keys_of_gpt2_mean_what_they_mean_to_transformers() -> None:
    draw = random.Random("gpt2")
    choices: dict[str, list[Any]] = {
        "n_layer": [4, 30],
        "n_embd": [512, 8192],
        "n_head": [64],
        "num_attention_heads": [32],  # the common name
        "n_inner": [96, None],
        "vocab_size": [300],
        "n_positions": [512],
        "layer_norm_epsilon": [1e-6],
        "tie_word_embeddings": [True, False],
        "head_dim": [17],  # the class does not read it
        "num_key_value_heads": [2],
    }
    for _ in range(60):
        raw = {key: draw.choice(values) for key, values in choices.items() if draw.random() < 0.5}
        if {"n_head", "num_attention_heads"} <= raw.keys():
            del raw["num_attention_heads"]
        theirs = config_class("gpt2")(**raw)
        if theirs.n_embd % theirs.n_head:
            continue
        model = parse_config(Path(), {"model_type": "gpt2", **raw}).model
        expected = (theirs.n_layer, theirs.n_embd, theirs.n_inner or 4 * theirs.n_embd, theirs.vocab_size)
        assert (model.num_layers, model.hidden_size, model.ffn_size, model.vocab_size) == expected, raw
        assert model.num_attention_heads == model.query_groups == theirs.n_head
        assert model.head_size == theirs.n_embd // theirs.n_head
        assert (model.max_position_embeddings, model.norm_epsilon) == (theirs.n_positions, theirs.layer_norm_epsilon)
        assert model.untie_embeddings_and_output_weights != theirs.tie_word_embeddings
        flags = (model.swiglu, model.normalization, model.position_embedding_type, model.disable_bias_linear)
        assert flags == (False, "LayerNorm", "learned_absolute", False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_layer", 0, "n_layer is 0, not a whole number from 1"),
        ("activation_function", "gelu", "activation_function 'gelu' is not supported; only 'gelu_new'"),
        ("layer_norm_epsilon", 0, "layer_norm_epsilon is 0, not a number between 0 and 1"),
        ("n_head", 7, "n_embd 768 is not a multiple of n_head 7"),
        ("scale_attn_weights", False, "scale_attn_weights False is not supported; only true is"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx True is not supported; only false"),
        ("add_cross_attention", True, "add_cross_attention True is not supported; only false is"),
    ],
)
def test_faults_of_gpt2_are_named_as_its_config_names_them(key: str, value: Any, message: str) -> None:
    [problem] = outcome({"model_type": "gpt2", key: value})
    assert message in problem


@pytest.mark.parametrize("family", ROTARY)
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
    own = BY_NAME[family]
    names = {own.key_name(key) for key in own.defaults}
    keys = {*names, *own.only, "head_dim", "attention_bias", "mlp_bias", "quantization_config", "layer_types"}
    cases = [{key: value} for key in sorted(keys) for value in ODD_VALUES]
    if family in ROTARY:
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
    assert 0 < fields["norm_epsilon"] < 1 and 0 < fields.get("rotary_base", 1.0) < float("inf"), raw
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
