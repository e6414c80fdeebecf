"""Check the input of a conversion: model type, layout, and that config.json describes the model of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from mindspeed_llm.arguments.convert_arguments import ConvertArguments
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig
from mindspeed_llm.arguments.loaded_shape import read_checkpoint_shape, shape_differences, shown
from mindspeed_llm.arguments.model_arguments import pad_vocab_size
from mindspeed_llm.conversion.model_weights import open_megatron_checkpoint
from mindspeed_llm.conversion.model_writers import is_export
from mindspeed_llm.conversion.rank_files import RankLayout
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.families import is_family_name
from mindspeed_llm.storage.checkpoint_directory import CARRIED


def check_kind(arguments: ConvertArguments, config: HuggingFaceConfig) -> None:
    """Refuse a --model-type-hf that is not the family in config.json.

    Raises:
        ConfigError: it is another family.
    """
    kind, family = arguments.model_type_hf, config.family
    if kind is not None and not is_family_name(family, kind):
        path = config.folder / "config.json"
        raise ConfigError(f"--model-type-hf {kind}: {path} describes a {family.model_type}; leave the flag out")


def check_shape(checkpoint: Path, config: HuggingFaceConfig) -> None:
    """Refuse a config.json that describes another model than the checkpoint's own description.

    Raises:
        CheckpointError: the tensors belong to another model.
        ConfigError: the tensors fit, but a setting differs that no tensor shape shows, such as the rotary base.
    """
    shape = read_checkpoint_shape(checkpoint)
    problems = [
        f"{config.folder / 'config.json'}: specifies {flag} {shown(in_config)}, but {shape.path} specifies "
        f"{shown(in_checkpoint)}; give --hf-dir with the config.json of that model"
        for flag, in_config, in_checkpoint in (shape_differences(shape, config.model) if shape else ())
        # The vocabulary of a run may be padded; the shapes of the tensors are checked when the weights are opened.
        if shape is not None and flag not in ("--vocab-size", "--padded-vocab-size")
    ]
    if problems:
        # Raises a CheckpointError with the names of the tensors if their shapes differ, which is the clearer message.
        open_megatron_checkpoint(checkpoint, TensorCatalogue(config))
        raise ConfigError(problems)


def target_layout(arguments: ConvertArguments, config: HuggingFaceConfig) -> RankLayout | None:
    """Return the layout of the per-rank files to write; None for a distributed checkpoint.

    Raises:
        ConfigError: the layout does not divide the model.
    """
    if arguments.ckpt_format != "torch":
        return None
    ranks, stages = arguments.target_tensor_parallel_size, arguments.target_pipeline_parallel_size
    _check_layout(config, ranks, stages)
    return RankLayout(ranks, stages, pad_vocab_size(config.vocab_size, arguments.make_vocab_size_divisible_by, ranks))


def _check_layout(config: HuggingFaceConfig, ranks: int, stages: int) -> None:
    """Refuse numbers of tensor-parallel ranks and pipeline stages that do not divide the model."""
    model = config.model
    problems = []
    # One linear layer computes query, key and value; it is divided by rows, not necessarily at query groups.
    columns = (model.num_attention_heads + 2 * model.query_groups) * model.head_size
    for what, size in (
        ("num_attention_heads", model.num_attention_heads),
        ("intermediate_size", model.ffn_size),
        ("the columns of query, key and value", columns),
    ):
        if size % ranks:
            problems.append(f"--target-tensor-parallel-size {ranks} does not divide {what} {size}")
    if model.num_layers % stages:
        problems.append(
            f"--target-pipeline-parallel-size {stages} does not divide num_hidden_layers {model.num_layers}"
        )
    if problems:
        raise ConfigError(problems)


def hugging_face_folders(arguments: ConvertArguments, checkpoint: Path) -> tuple[Path, Path]:
    """Return the folder of config and tokenizer, and the folder for the weights.

    As in MindSpeed-LLM, --save-dir may be the folder of the original model; the weights then go to its directory mg2hf.

    Args:
        arguments: arguments of convert_ckpt.py.
        checkpoint: the iter_ directory that is converted.

    Returns:
        Both folders.

    Raises:
        ConfigError: there is no config.json.
    """
    save = Path(arguments.save_dir)
    original = (save / "config.json").is_file() and not is_export(save / "mg2hf")
    target = save / "mg2hf" if (save / "config.json").is_file() and not arguments.hf_dir else save
    if arguments.hf_dir:
        return Path(arguments.hf_dir), target
    if original or (save / "config.json").is_file():
        return save, target
    if (checkpoint / CARRIED / "config.json").is_file():
        return checkpoint / CARRIED, target
    raise ConfigError(
        f"no config.json describes the model of {checkpoint}: give --hf-dir with the folder of the Hugging Face model "
        "it was converted from"
    )
