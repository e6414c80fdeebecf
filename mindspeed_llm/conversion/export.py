"""Export a finished run as a Hugging Face folder (`--save-hf`)."""

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
from mindspeed_llm.conversion.adapter_weights import open_adapter, write_peft_folder
from mindspeed_llm.conversion.convert import to_hugging_face
from mindspeed_llm.conversion.convert_adapter import check_base, write_merged_folder
from mindspeed_llm.conversion.generation_info import GenerationInfo
from mindspeed_llm.conversion.hugging_face_weights import TOKENIZER_FILES
from mindspeed_llm.conversion.model_assets import ModelAssets, read_existing_files
from mindspeed_llm.conversion.model_weights import latest_checkpoint
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.families import ModelFamily, families
from mindspeed_llm.storage.checkpoint_directory import CARRIED
from mindspeed_llm.tokenization import Tokenizer


def export_run(checkpoint: CheckpointArguments, assets: ModelAssets, source: Path | None = None) -> Path:
    """Write a checkpoint of --save to --save-hf.

    This needs no process group and runs in one process.

    Args:
        checkpoint: checkpoint arguments of the run.
        assets: assets of the model, from `assets_of_run`.
        source: directory of the checkpoint; by default the newest.

    Returns:
        The folder of --save-hf.

    Raises:
        UserError: the checkpoint cannot be read, or the folder cannot be written.
    """
    source = source or latest_checkpoint(Path(str(checkpoint.save)))
    return to_hugging_face(source, assets.config, Path(str(checkpoint.save_hf)), assets=assets)


def export_adapter_run(
    checkpoint: CheckpointArguments,
    assets: ModelAssets,
    base_folder: str | Path | None,
    source: Path | None = None,
) -> list[Path]:
    """Write the adapter in a checkpoint of --save to --save-hf, and the merged model to --save-hf-merged.

    This needs no process group and runs in one process.

    Args:
        checkpoint: checkpoint arguments of the run.
        assets: assets of the model, from `assets_of_run`.
        base_folder: Hugging Face folder or checkpoint of the base model, as the command line names it.
        source: directory of the checkpoint; by default the newest.

    Returns:
        The folders that were written.

    Raises:
        UserError: the checkpoint or the base model cannot be read, the base model is not the one that the adapter was
            trained on, or a folder cannot be written.
    """
    source = source or latest_checkpoint(Path(str(checkpoint.save)))
    adapter = open_adapter(source, assets.config, "--save")
    written = []
    if checkpoint.save_hf is not None:
        target = Path(checkpoint.save_hf)
        catalogue, settings = adapter.catalogue, adapter.settings
        written.append(write_peft_folder(target, catalogue, adapter, settings, assets, base_folder, adapter.dtype))
    if checkpoint.save_hf_merged is not None:
        if base_folder is None:
            raise ConfigError(f"--save-hf-merged {checkpoint.save_hf_merged}: the base model is not on disk")
        if adapter.record is not None:
            check_base(adapter.record, Path(base_folder), assets.config)
        target = Path(checkpoint.save_hf_merged)
        written.append(write_merged_folder(target, Path(base_folder), adapter, assets.config, assets))
    return written


def assets_of_run(
    arguments: PretrainArguments, vocabulary: int | None, generation_info: GenerationInfo, tokenizer: Tokenizer | None
) -> ModelAssets | None:
    """Return the assets of a run's model, for its checkpoints and its export.

    Config, tokenizer and generation settings come from the Hugging Face folder that the run started from, or from the
    checkpoint of its --load. A run from random weights gets a config.json made from its flags, and the tokenizer of the
    command line. End tokens and chat template are those of the training data.

    Args:
        arguments: arguments of the run.
        vocabulary: number of tokens in the tokenizer, if it is known.
        generation_info: end tokens and chat template of the data.
        tokenizer: tokenizer of the command line, if any.

    Returns:
        The assets; None if transformers has no such model.

    Raises:
        ConfigError: a file of the folder cannot be used.
    """
    folder = config_source_of_run(arguments.model, arguments.checkpoint)
    try:
        # Only tests whether a family fits; vocabulary and positions do not matter for that.
        config_of_shape(arguments.model, 1, 1)
    except ConfigError:
        return None
    config = config_of_run(arguments, vocabulary, tokenizer.eos_id if tokenizer else None)
    assets = ModelAssets.read(config) if folder is not None else ModelAssets(config)
    return assets.with_tokenizer(_tokenizer_files(arguments.tokenizer)).trained_on(generation_info)


def _tokenizer_files(flags: TokenizerArguments) -> dict[str, bytes]:
    """Return the files of the tokenizer that the command line names: name → content."""
    named, model = flags.tokenizer_name_or_path, flags.tokenizer_model
    if named is not None and Path(named).is_dir():
        return read_existing_files(Path(named), TOKENIZER_FILES)
    if model is not None and Path(model).is_file():
        return {"tokenizer.model": Path(model).read_bytes()}
    return {}


def config_source_of_run(model: ModelArguments, checkpoint: CheckpointArguments) -> Path | None:
    """Return the folder of a run's config.json.

    The candidates are the Hugging Face folder of --load, then the assets in the newest checkpoint of --load, then those
    in the newest checkpoint of --save. A folder that describes another model is skipped.

    Args:
        model: model arguments of the run.
        checkpoint: checkpoint arguments of the run.

    Returns:
        The first folder that fits; None without --load, or if none fits.
    """
    candidates: list[Path] = []
    if checkpoint.load is not None and is_hugging_face_folder(checkpoint.load):
        candidates.append(Path(checkpoint.load))
    for root in (checkpoint.load, checkpoint.save) if checkpoint.load is not None else ():
        # The directory of --load may no longer exist when a run resumes from --save.
        with contextlib.suppress(CheckpointError):
            candidates.append(latest_checkpoint(Path(str(root))) / CARRIED)
    for folder in candidates:
        if (folder / "config.json").is_file() and config_matches_model(folder, model):
            return folder
    return None


def config_of_run(
    arguments: PretrainArguments, vocabulary: int | None, eos_id: int | None, flag: str = "--save-hf"
) -> HuggingFaceConfig:
    """Return the config.json of a run's model, read from the source of the run or made from its flags.

    It is also made from the flags if the folder of --load was changed and no longer describes the trained model.

    Args:
        arguments: arguments of the run.
        vocabulary: number of tokens in the tokenizer, if it is known.
        eos_id: id of the token that ends a sample, if it is known.
        flag: flag that needs the config.json, for the error message.

    Raises:
        ConfigError: no model family fits the flags, or the config.json of the folder cannot be used.
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
    """Make the content of a config.json from model arguments, for the family whose features fit.

    Args:
        model: model arguments.
        vocabulary: rows of the embedding.
        positions: maximum number of positions.
        flag: flag that needs the config.json, for the error message.

    Raises:
        ConfigError: no model family fits; one line for each reason.
    """
    family = _family_of_shape(model)
    problems = [f"{flag} {problem}" for problem in _shape_problems(model)]
    if family is None and not problems:
        flags = {"--qk-layernorm": model.qk_layernorm, "--add-qkv-bias": model.add_qkv_bias}
        given = " and ".join(name for name, is_given in flags.items() if is_given)
        problems.append(f"{flag}: no supported model family has {given}")
    if problems or family is None:
        raise ConfigError(problems)
    raw = _gpt2_config(model, family) if model.learns_positions else _rotary_config(model)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **raw,
        family.key_name("max_position_embeddings"): positions,
        "tie_word_embeddings": not model.untie_embeddings_and_output_weights,
        "initializer_range": model.init_method_std,
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def _rotary_config(model: ModelArguments) -> dict[str, Any]:
    """Return the keys of config.json in which models with rotary positions differ from those of GPT-2's shape."""
    raw: dict[str, Any] = {
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": model.rotary_base,
    }
    if model.use_rope_scaling:
        raw["rope_scaling"] = {"rope_type": "llama3", "factor": model.rope_scaling_factor, **LLAMA3_ROPE}
    return raw


def _gpt2_config(model: ModelArguments, family: ModelFamily) -> dict[str, Any]:
    """Return the keys of config.json of a model of GPT-2's shape."""
    common = {
        "hidden_act": "gelu_new",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "rms_norm_eps": model.norm_epsilon,
    }
    dropout = {"embd_pdrop": model.hidden_dropout, "resid_pdrop": model.hidden_dropout}
    # The defaults of transformers are ids of GPT-2's own tokenizer.
    tokens = {"bos_token_id": None, "eos_token_id": None}
    return {family.key_name(key): value for key, value in common.items()} | dropout | {"attn_pdrop": 0.0} | tokens


def _shape_problems(model: ModelArguments) -> list[str]:
    """Return one line for each flag with which no model family has the position embedding of the model."""
    if model.learns_positions:
        where = "with --position-embedding-type learned_absolute"
        wrong = {
            "--normalization LayerNorm": model.normalization != "LayerNorm",
            "a model without --swiglu": model.swiglu,
            "a model without --disable-bias-linear": model.disable_bias_linear,
            "a model without --qk-layernorm": model.qk_layernorm,
            "as many query groups as attention heads": model.query_groups != model.num_attention_heads,
            "a head size of --hidden-size / --num-attention-heads": (
                model.head_size * model.num_attention_heads != model.hidden_size
            ),
        }
    else:
        where = "with rotary positions"
        wrong = {
            "--normalization RMSNorm": model.normalization != "RMSNorm",
            "--swiglu": not model.swiglu,
            "--disable-bias-linear": not model.disable_bias_linear,
            "--rotary-percent 1": model.rotary_percent != 1.0,
        }
    return [f"needs {needed}: no other model {where} is supported" for needed, is_wrong in wrong.items() if is_wrong]


def _family_of_shape(model: ModelArguments) -> ModelFamily | None:
    """Return the model family for a model that only flags describe; None if no family has these features."""
    wanted = (model.learns_positions, model.has_qkv_bias, model.qk_layernorm)
    # Several families can have the same features; `fits_flags` marks the family that is written for them.
    return next(
        (
            family
            for family in families()
            if family.fits_flags
            and (family.features.learned_positions, family.features.qkv_bias, family.features.qk_norm) == wanted
        ),
        None,
    )
