"""A finished run as a Hugging Face folder (`--save-hf`)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.config_json import LLAMA3_ROPE
from mindspeed_llm.arguments.data_arguments import TokenizerArguments
from mindspeed_llm.arguments.hugging_face_config import (
    HuggingFaceConfig,
    is_hugging_face_folder,
    parse_config,
    read_config,
)
from mindspeed_llm.arguments.loaded_shape import config_matches_model
from mindspeed_llm.arguments.model_arguments import ModelArguments
from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.conversion.convert import latest_checkpoint, to_hugging_face
from mindspeed_llm.conversion.generation_info import GenerationInfo
from mindspeed_llm.conversion.hugging_face_weights import TOKENIZER_FILES
from mindspeed_llm.conversion.model_assets import ModelAssets, read_existing_files
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.families import ModelFamily, families
from mindspeed_llm.storage.checkpoint_directory import CARRIED
from mindspeed_llm.tokenization import Tokenizer


def export_run(checkpoint: CheckpointArguments, assets: ModelAssets) -> Path:
    """Write the newest checkpoint of --save to --save-hf. Needs no process group; one process does it.

    Args:
        checkpoint: the flags of the run.
        assets: from `assets_of_run`.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    newest = latest_checkpoint(Path(str(checkpoint.save)))
    return to_hugging_face(newest, assets.config, Path(str(checkpoint.save_hf)), assets=assets)


def assets_of_run(
    arguments: PretrainArguments, vocabulary: int | None, answering: GenerationInfo, tokenizer: Tokenizer | None
) -> ModelAssets | None:
    """What a run's model needs besides its weights: in its checkpoints and in its export.

    Config, tokenizer and generation settings are those of the Hugging Face folder that the run started from, or that
    its --load carries. A run from random weights gets a config.json that says its shape, and the tokenizer that the
    command names. End tokens and chat template are those of the data.

    Args:
        arguments: of the run.
        vocabulary: tokens that the tokenizer can give.
        answering: how the data end answers.
        tokenizer: the one that the command names, if any.

    Returns:
        None if the model is none that transformers has.

    Raises:
        ConfigError: a file of the folder cannot be used.
    """
    folder = config_source_of_run(arguments.model, arguments.checkpoint)
    try:
        config_of_shape(arguments.model, 1, 1)
    except ConfigError:
        return None
    config = config_of_run(arguments, vocabulary, tokenizer.eos_id if tokenizer else None)
    assets = ModelAssets.read(config) if folder is not None else ModelAssets(config)
    return assets.with_tokenizer(_tokenizer_files(arguments.tokenizer)).trained_on(answering)


def _tokenizer_files(flags: TokenizerArguments) -> dict[str, bytes]:
    named, model = flags.tokenizer_name_or_path, flags.tokenizer_model
    if named is not None and Path(named).is_dir():
        return read_existing_files(Path(named), TOKENIZER_FILES)
    if model is not None and Path(model).is_file():
        return {"tokenizer.model": Path(model).read_bytes()}
    return {}


def config_source_of_run(model: ModelArguments, checkpoint: CheckpointArguments) -> Path | None:
    """The folder of a run's config.json: that of --load, or what --load or an earlier checkpoint of --save carries.

    A folder that describes another model by now is passed over.
    """
    candidates: list[Path] = []
    if checkpoint.load is not None and is_hugging_face_folder(checkpoint.load):
        candidates.append(Path(checkpoint.load))
    for root in (checkpoint.load, checkpoint.save) if checkpoint.load is not None else ():
        with contextlib.suppress(CheckpointError):  # --load may be gone by the time a run continues from --save
            candidates.append(latest_checkpoint(Path(str(root))) / CARRIED)
    for folder in candidates:
        if (folder / "config.json").is_file() and config_matches_model(folder, model):
            return folder
    return None


def config_of_run(
    arguments: PretrainArguments, vocabulary: int | None, eos_id: int | None, flag: str = "--save-hf"
) -> HuggingFaceConfig:
    """The config.json of a run's model, read where it started from or worked out from its flags.

    It is worked out too where the folder of --load has changed since and describes another model than was trained.

    Args:
        arguments: of the run.
        vocabulary: tokens that the tokenizer can give.
        eos_id: token that ends a sample, if it is known.
        flag: what needs it, for the message if there is none.

    Raises:
        ConfigError: no family is like this model.
    """
    folder = config_source_of_run(arguments.model, arguments.checkpoint)
    if folder is not None:
        return read_config(folder)
    model = arguments.model
    rows = model.vocabulary_size(vocabulary)
    assert rows is not None, "a run cannot start without a vocabulary"
    raw = config_of_shape(model, rows, arguments.max_position_embeddings, flag)
    if eos_id is not None:
        raw["eos_token_id"] = eos_id
    return parse_config(Path(), raw)


def config_of_shape(model: ModelArguments, vocabulary: int, positions: int, flag: str = "--save-hf") -> dict[str, Any]:
    """config.json for a shape that flags say, of the family whose features fit it.

    Raises:
        ConfigError: no family is like that.
    """
    family = _family_of_shape(model)
    problems = []
    if not model.swiglu:
        problems.append(f"{flag} needs --swiglu: no family that is built has another MLP")
    if not model.disable_bias_linear:
        problems.append(f"{flag} needs --disable-bias-linear: no family that is built has these biases")
    if family is None:
        flags = {"--qk-layernorm": model.qk_layernorm, "--add-qkv-bias": model.add_qkv_bias}
        given = " and ".join(name for name, is_given in flags.items() if is_given)
        problems.append(f"{flag}: no family that is built has {given}")
    if model.rotary_percent != 1.0:
        problems.append(f"{flag}: no family that is built has --rotary-percent {model.rotary_percent:g}")
    if problems or family is None:
        raise ConfigError(problems)
    raw: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
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


def _family_of_shape(model: ModelArguments) -> ModelFamily | None:
    """The family as which a model is written whose shape flags say."""
    wanted = (model.add_qkv_bias, model.qk_layernorm)
    return next(
        (one for one in families() if one.for_flags and (one.features.qkv_bias, one.features.qk_norm) == wanted), None
    )
