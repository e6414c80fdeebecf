"""config.json as flags: what is left out comes from it, what disagrees is refused."""

from __future__ import annotations

import json

import pytest

from mindspeed_llm.arguments.compatibility_arguments import QWEN3_SPEC
from mindspeed_llm.arguments.hugging_face_config import read_config
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError

# Qwen2.5-7B's shape, as its config.json has it.
QWEN = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 152064,
}
LLAMA31_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
REST = (
    "--seq-length 4096 --no-save-model "
    "--micro-batch-size 1 --lr 1e-5 --train-iters 1 --data-path none --split 100,0,0 --neat-pack "
    "--is-instruction-dataset --reset-position-ids --eval-iters 0"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    return tmp_path


def parse(folder, extra=""):
    return parse_pretrain_arguments([*REST.split(), "--load", str(folder), *extra.split()], 1)


def change(folder, **fields):
    (folder / "config.json").write_text(json.dumps({**QWEN, **fields}))


def test_shape_flags_may_be_left_out(folder):
    arguments = parse(folder)
    model = arguments.model
    assert (model.num_layers, model.hidden_size, model.ffn_size, model.num_attention_heads) == (28, 3584, 18944, 28)
    assert (model.query_groups, model.head_size, model.vocab_size, arguments.vocabulary().padded) == (
        4,
        128,
        152064,
        152064,
    )
    assert model.add_qkv_bias and model.disable_bias_linear and model.swiglu and not model.qk_layernorm
    assert model.norm_epsilon == 1e-6 and model.rotary_base == 1e6 and model.untie_embeddings_and_output_weights
    assert not {"--num-layers", "--add-qkv-bias", "--vocab-size"} & arguments.given
    assert "--lr" in arguments.given


def test_flags_that_agree_are_accepted(folder):
    parse(
        folder,
        "--num-layers 28 --hidden-size 3584 --ffn-hidden-size 18944 --group-query-attention --num-query-groups 4 "
        "--max-position-embeddings 4096 --padded-vocab-size 152064 --make-vocab-size-divisible-by 1 --add-qkv-bias "
        "--norm-epsilon 1e-6 --rotary-base 1000000 --untie-embeddings-and-output-weights",
    )


@pytest.mark.parametrize(
    "words",
    [
        "--num-layers 27",
        "--hidden-size 3072",
        "--ffn-hidden-size 18943",
        "--num-query-groups 2",
        "--norm-epsilon 1e-5",
        "--rotary-base 10000",
        "--padded-vocab-size 152192",
        "--vocab-size 152000",
        "--max-position-embeddings 65536",
        "--qk-layernorm",
        "--use-rope-scaling",
        "--rope-scaling-type llama3",
    ],
)
def test_flags_that_disagree_are_refused(folder, words):
    with pytest.raises(ConfigError) as refusal:
        parse(folder, words)
    assert len(refusal.value.problems) == 1, refusal.value.problems
    assert words.split()[0] in str(refusal.value) and "config.json" in str(refusal.value)


def test_the_spec_of_qwen3_is_compared_with_the_model_of_the_folder(folder):
    spec = f"--spec {' '.join(QWEN3_SPEC)}"
    with pytest.raises(ConfigError, match="is a model with --qk-layernorm"):
        parse(folder, spec)
    change(folder, model_type="qwen3", head_dim=128)
    assert parse(folder, spec).model.qk_layernorm


def test_all_disagreements_are_reported_together(folder):
    with pytest.raises(ConfigError) as refusal:
        parse(folder, "--num-layers 24 --rotary-base 10000 --no-such-flag")
    assert len(refusal.value.problems) == 3


def test_both_ways_to_write_the_rotary_settings(folder):
    change(folder, model_type="llama", rope_theta=500000.0, rope_scaling=LLAMA31_ROPE)
    old = read_config(folder).fields
    config = {key: value for key, value in QWEN.items() if key != "rope_theta"}
    config |= {"model_type": "llama", "rope_parameters": {**LLAMA31_ROPE, "rope_theta": 500000.0}}
    (folder / "config.json").write_text(json.dumps(config))
    assert read_config(folder).fields == old
    assert old["use_rope_scaling"] and old["rope_scaling_factor"] == 8.0 and old["rotary_base"] == 500000.0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model_type": "gpt_neox"}, "gpt_neox"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {**LLAMA31_ROPE, "high_freq_factor": 8.0}}, "high_freq_factor"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "mlp_bias"),
    ],
)
def test_unsupported_features_are_refused_by_name(folder, fields, named):
    change(folder, **fields)
    with pytest.raises(ConfigError, match=named):
        parse(folder)


def test_the_sliding_window_limits_the_sequence_length(folder):
    change(folder, model_type="mistral", sliding_window=4096)
    parse(folder)
    change(folder, model_type="mistral", sliding_window=2048)
    with pytest.raises(ConfigError, match="sliding window of 2048"):
        parse(folder)
    change(folder, sliding_window=2048)  # Qwen2 says whether it is used
    parse(folder)
    change(folder, sliding_window=2048, use_sliding_window=True)  # from layer 28 on, and there are 28
    parse(folder)
    change(folder, sliding_window=2048, use_sliding_window=True, max_window_layers=0)
    with pytest.raises(ConfigError, match="sliding window"):
        parse(folder)


def test_a_checkpoint_folder_is_not_taken_for_a_model(folder):
    (folder / "latest_checkpointed_iteration.txt").write_text("1")
    with pytest.raises(ConfigError, match="--num-layers"):
        parse(folder)
