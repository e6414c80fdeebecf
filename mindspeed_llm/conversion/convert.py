"""Convert a model in either direction: check the input, write a temporary directory, rename it when it is complete."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from mindspeed_llm.arguments.convert_arguments import ConvertArguments
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, read_config
from mindspeed_llm.conversion.conversion_checks import check_kind, check_shape, hugging_face_folders, target_layout
from mindspeed_llm.conversion.convert_adapter import convert_adapter, refuse_adapter_as_model
from mindspeed_llm.conversion.hugging_face_weights import SHARD_BYTES, HuggingFaceWeights, copy_model_assets
from mindspeed_llm.conversion.model_assets import ModelAssets, assets_of_checkpoint
from mindspeed_llm.conversion.model_weights import (
    PARAMS,
    common_dtype,
    latest_checkpoint,
    open_megatron_checkpoint,
)
from mindspeed_llm.conversion.model_writers import (
    check_export_target,
    write_hugging_face_folder,
    write_megatron_checkpoint,
)
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue
from mindspeed_llm.storage.checkpoint_file_list import check_hashes

logger = logging.getLogger(__name__)


def convert(arguments: ConvertArguments) -> Path:
    """Convert a model or an adapter as the arguments of convert_ckpt.py specify.

    Returns:
        The directory that was written: an iter_ directory, a Hugging Face folder, or a peft folder.

    Raises:
        UserError: invalid arguments, or input that is missing, damaged or of another model. No partial output remains.
    """
    written = convert_adapter(arguments)
    if written is not None:
        return written
    refuse_adapter_as_model(arguments)
    if arguments.load_model_type == "hf":
        return to_megatron(arguments)
    checkpoint = latest_checkpoint(Path(arguments.load_dir))
    source, target = hugging_face_folders(arguments, checkpoint)
    config = read_config(source)
    check_kind(arguments, config)
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else None
    # Hashes first: in a damaged checkpoint the shape, and every message about it, could be wrong as well.
    check_hashes(checkpoint)
    check_shape(checkpoint, config)
    return to_hugging_face(checkpoint, config, target, dtype, assets=assets_of_checkpoint(checkpoint, config))


def to_megatron(arguments: ConvertArguments) -> Path:
    """Convert a Hugging Face folder into a checkpoint of megatron-core.

    Returns:
        The iter_ directory that was written in --save-dir.

    Raises:
        ConfigError: config.json or an argument cannot be used, or --save-dir contains a model or a checkpoint already.
        CheckpointError: the weights are damaged or do not match config.json, or the output cannot be written.
        LeaseError: a run or another conversion writes to --save-dir.
    """
    config = read_config(arguments.load_dir)
    check_kind(arguments, config)
    catalogue = TensorCatalogue(config)
    weights = HuggingFaceWeights(Path(arguments.load_dir), once=True)
    weights.check(catalogue)
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else common_dtype(weights.dtypes.values())
    layout = target_layout(arguments, config)

    def write_assets(folder: Path) -> None:
        copy_model_assets(config.folder, folder)

    return write_megatron_checkpoint(
        Path(arguments.save_dir), catalogue, weights, dtype, layout, write_assets, "hf → mg"
    )


def to_hugging_face(
    checkpoint: Path,
    config: HuggingFaceConfig,
    target: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    assets: ModelAssets | None = None,
) -> Path:
    """Convert a checkpoint of megatron-core into a Hugging Face folder.

    Args:
        checkpoint: an iter_ directory.
        config: configuration of the model.
        target: folder to write; an earlier export in it is replaced.
        dtype: dtype of the weights; by default that of the checkpoint, float32 if it has several.
        shard_bytes: maximum size of one safetensors file in bytes.
        assets: assets to write beside the weights; by default those in the folder of `config`.

    Returns:
        `target`.

    Raises:
        CheckpointError: the checkpoint is damaged or of another model, or `target` cannot be written.
        ConfigError: an asset cannot be read, or `target` contains something other than an earlier export.
    """
    catalogue = TensorCatalogue(config)
    weights = open_megatron_checkpoint(checkpoint, catalogue)
    dtype = dtype or common_dtype(weights.dtypes.values())
    own = assets or ModelAssets.read(config)

    def write_assets(folder: Path) -> None:
        own.write(folder, str(dtype).removeprefix("torch."))

    return write_hugging_face_folder(target, catalogue, weights, dtype, write_assets, "mg → hf", shard_bytes)


__all__ = [
    "check_export_target",
    "convert",
    "latest_checkpoint",
    "to_hugging_face",
    "to_megatron",
]
