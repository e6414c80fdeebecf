"""A finished run as a Hugging Face folder (`--save-hf`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.hugging_face import LLAMA3_ROPE, HuggingFaceConfig, describe, is_hugging_face, read_config
from mindspeed_llm.arguments.loaded_shape import describes
from mindspeed_llm.arguments.model import ModelArguments
from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.conversion.convert import CARRIED, latest_checkpoint, to_hugging_face
from mindspeed_llm.errors import CheckpointError, ConfigError

# What transformers calls the models of each family.
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}


def export_run(arguments: PretrainArguments, vocabulary: int | None, end_id: int | None) -> Path:
    """Write the newest checkpoint of --save to --save-hf. Needs no process group; one process does it.

    Config, tokenizer and generation settings are those of the Hugging Face folder the run started from, or that its
    --load was converted from. A run from random weights gets a config.json that says its shape.

    Args:
        arguments: of the run.
        vocabulary: tokens that the tokenizer can give.
        end_id: token that ends a sample, if it is known.

    Raises:
        UserError: the checkpoint cannot be read, or the model is none that transformers has.
    """
    checkpoint = latest_checkpoint(Path(str(arguments.checkpoint.save)))
    named = arguments.tokenizer.tokenizer_name_or_path
    tokenizer = Path(named) if named and Path(named).is_dir() else None
    config = config_of_run(arguments, vocabulary, end_id)
    return to_hugging_face(checkpoint, config, Path(str(arguments.checkpoint.save_hf)), tokenizer=tokenizer)


def config_of_run(
    arguments: PretrainArguments, vocabulary: int | None, end_id: int | None, flag: str = "--save-hf"
) -> HuggingFaceConfig:
    """The config.json of a run's model, read where it started from or worked out from its flags.

    It is worked out too where the folder of --load has changed since and describes another model than was trained.

    Args:
        arguments, vocabulary, end_id: as for `export_run`.
        flag: what needs it, for the message if there is none.

    Raises:
        ConfigError: no family is like this model.
    """
    load = arguments.checkpoint.load
    if load is not None and is_hugging_face(load):
        if describes(Path(load), arguments.model):
            return read_config(load)
        load = None
    if load is not None:
        try:
            carried = latest_checkpoint(Path(load)) / CARRIED
        except CheckpointError:  # --load may be gone by the time a run goes on from --save
            carried = Path(load)
        if (carried / "config.json").is_file() and describes(carried, arguments.model):
            return read_config(carried)
    model = arguments.model
    rows = model.padded_vocab_size or model.vocab_size or vocabulary
    assert rows is not None, "a run cannot start without a vocabulary"
    raw = config_of_shape(model, rows, arguments.max_position_embeddings, flag)
    if end_id is not None:
        raw["eos_token_id"] = end_id
    return describe(Path(), raw)


def config_of_shape(model: ModelArguments, vocabulary: int, positions: int, flag: str = "--save-hf") -> dict[str, Any]:
    """config.json for a shape that flags say: Qwen2 has biases on query, key and value, Qwen3 norms, Llama neither.

    Raises:
        ConfigError: no family is like that.
    """
    family = "qwen3" if model.qk_layernorm else "qwen2" if model.add_qkv_bias else "llama"
    problems = []
    if not model.swiglu:
        problems.append(f"{flag} needs --swiglu: no family that is built has another MLP")
    if not model.disable_bias_linear:
        problems.append(f"{flag} needs --disable-bias-linear: no family that is built has these biases")
    if model.qk_layernorm and model.add_qkv_bias:
        problems.append(f"{flag}: no family that is built has --qk-layernorm and --add-qkv-bias")
    if model.rotary_percent != 1.0:
        problems.append(f"{flag}: no family that is built has --rotary-percent {model.rotary_percent:g}")
    if problems:
        raise ConfigError(problems)
    raw: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "max_position_embeddings": positions,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rotary_base,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "initializer_range": model.init_method_std,
        "use_cache": True,
        "vocab_size": vocabulary,
    }
    if model.use_rope_scaling:
        raw["rope_scaling"] = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **LLAMA3_ROPE}
    return raw
