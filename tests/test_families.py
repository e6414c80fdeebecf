"""The records of the model families; a new family is one file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS

import mindspeed_llm.families
from mindspeed_llm.arguments.hugging_face_config import parse_config
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import families, find_family, is_family_name, model_type_names

PROGRAM = Path(__file__).with_name("new_family_program.py")
MADE_UP = """
from mindspeed_llm.families.defaults import COMMON
from mindspeed_llm.families.family import ModelFamily, FamilyFeatures
from mindspeed_llm.families.tensor_rows import K_NORM, NORMS_AND_MLP, Q_NORM, QKV, QKV_BIAS, tensor_row

FAMILY = ModelFamily(
    model_type="made-up",
    architecture="MadeUpForCausalLM",
    names=("fancy",),
    features=FamilyFeatures(qkv_bias=True, qk_norm=True, tied_embeddings=False, rope_scaling=()),
    defaults={
        **COMMON,
        "vocab_size": 100,
        "intermediate_size": 100,
        "num_key_value_heads": None,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    layer=(
        QKV,
        QKV_BIAS,
        Q_NORM,
        K_NORM,
        tensor_row("self_attention.linear_proj.weight", "attn.out.weight HQ", "same", "columns"),
        *(one for one in NORMS_AND_MLP if one.name != "self_attention.linear_proj.weight"),
    ),
    embedding=tensor_row("embedding.word_embeddings.weight", "blocks.wte.weight VH", "same", "vocabulary"),
    layer_prefix="blocks.{}.",
    fits_flags=True,
)
"""


@pytest.fixture
def made_up(tmp_path):
    """A folder with the file of a made-up family."""
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "made_up.py").write_text(MADE_UP)
    return folder


@pytest.fixture
def found(made_up, monkeypatch):
    """The made-up family, in this process."""
    monkeypatch.setattr(mindspeed_llm.families, "__path__", [*mindspeed_llm.families.__path__, str(made_up)])
    families.cache_clear()
    yield find_family("made-up")
    monkeypatch.undo()
    families.cache_clear()
    sys.modules.pop("mindspeed_llm.families.made_up", None)


def test_a_family_is_added_by_one_file(made_up, tmp_path):
    """It is chosen on the command line, its config.json gives the arguments, and its weights are converted."""
    command = [sys.executable, str(PROGRAM), str(made_up), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["same"] == {"torch_dist": True, "torch": True}
    assert {"--add-qkv-bias", "--qk-layernorm", "--untie-embeddings-and-output-weights"} < set(said["words"])
    assert said["written"]["model_type"] == "made-up" and said["written"]["architectures"] == ["MadeUpForCausalLM"]


def test_features_say_which_values_of_config_json_can_be_used(found):
    assert found is not None and is_family_name(found, "fancy") and "fancy" in model_type_names()
    raw = {"model_type": "made-up", "hidden_size": 8, "num_attention_heads": 2}
    assert parse_config(Path(), raw | {"sliding_window": 4}).window is None
    with pytest.raises(ConfigError, match="tie_word_embeddings true is not supported for this family"):
        parse_config(Path(), raw | {"tie_word_embeddings": True})
    with pytest.raises(ConfigError, match="'llama3' is not supported; only 'default' is"):
        parse_config(Path(), raw | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})


def test_two_families_with_one_name_are_refused(found, made_up):
    (made_up / "again.py").write_text(MADE_UP)
    families.cache_clear()
    with pytest.raises(ValueError, match="two families have the same model_type"):
        families()
    sys.modules.pop("mindspeed_llm.families.again")


@pytest.mark.parametrize("family", families(), ids=lambda family: family.model_type)
def test_features_that_disagree_with_the_tensors_are_refused(family):
    for feature in ("qkv_bias", "qk_norm", "linear_bias", "layer_norm", "learned_positions"):
        other = {feature: not getattr(family.features, feature)}
        with pytest.raises(ValueError, match=feature):
            dataclasses.replace(family, features=dataclasses.replace(family.features, **other))


def test_the_names_on_the_command_line():
    assert model_type_names() == ("llama2", "gpt2", "llama3", "llama", "mistral", "qwen2", "qwen25", "qwen3")
    assert all(is_family_name(family, "llama2") for family in families())
    assert [family.model_type for family in families() if is_family_name(family, "qwen25")] == ["qwen2"]


def test_a_shape_from_flags_is_written_as_one_family():
    kinds = [(one.features.learned_positions, one.features.qkv_bias, one.features.qk_norm) for one in families()]
    counts = Counter(kind for kind, one in zip(kinds, families(), strict=True) if one.fits_flags)
    assert counts == {
        (False, False, False): 1,
        (False, True, False): 1,
        (False, False, True): 1,
        (True, True, False): 1,
    }
