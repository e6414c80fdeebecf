"""Convert an adapter as convert_ckpt.py is asked to: import it, export it, or merge it into its base model.

    peft folder ──import──▶ checkpoint with adapter.json ──export──▶ peft folder
    base model + adapter ──merge──▶ complete model

Each accepts what it can check: the settings of the command line must be those of the adapter, and a base model whose
hash a checkpoint of an adapter names must have this hash.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mindspeed_llm.adapters import (
    AdapterRecord,
    AdapterSettings,
    BaseModel,
    LoraSettings,
    find_adapter,
    is_adapter_folder,
    peft_folder_notice,
)
from mindspeed_llm.arguments.convert_arguments import ConvertArguments
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, read_config
from mindspeed_llm.conversion.adapter_weights import (
    AdapterWeights,
    assets_of_adapter,
    open_adapter,
    write_peft_folder,
)
from mindspeed_llm.conversion.base_hash import base_hash
from mindspeed_llm.conversion.conversion_checks import check_kind, check_shape, hugging_face_folders, target_layout
from mindspeed_llm.conversion.merge_adapter import MergedWeights
from mindspeed_llm.conversion.model_assets import ModelAssets
from mindspeed_llm.conversion.model_weights import PARAMS, common_dtype, latest_checkpoint, open_model
from mindspeed_llm.conversion.model_writers import write_hugging_face_folder, write_megatron_checkpoint
from mindspeed_llm.conversion.tensor_catalogue import TensorCatalogue
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.storage.checkpoint_directory import CARRIED
from mindspeed_llm.storage.checkpoint_file_list import check_hashes

logger = logging.getLogger(__name__)


def convert_adapter(arguments: ConvertArguments) -> Path | None:
    """Import, export or merge an adapter, if the arguments of convert_ckpt.py ask for it.

    Returns:
        The directory that was written; None if the arguments are about a complete model only.

    Raises:
        UserError: invalid arguments, or input that is missing, damaged or of another model. No partial output remains.
    """
    if arguments.lora_load is not None:
        return merge_adapter(arguments)
    if arguments.save_lora_to_hf:
        return export_adapter(arguments)
    is_import = (arguments.load_model_type, arguments.save_model_type) == ("hf", "mg")
    if is_import and arguments.hf_dir is not None and is_adapter_folder(arguments.load_dir):
        return import_adapter(arguments)
    given = _given_settings(arguments)
    if given and not is_adapter_folder(arguments.load_dir):
        raise ConfigError(
            f"{', '.join(given)}: --load-dir {arguments.load_dir} contains no adapter, and there is no --lora-load"
        )
    return None


def refuse_adapter_as_model(arguments: ConvertArguments) -> None:
    """Refuse an adapter in --load-dir where a complete model is expected.

    Raises:
        ConfigError: --load-dir contains an adapter. The message names the flags that convert it.
    """
    folder = arguments.load_dir
    if not is_adapter_folder(folder):
        return
    is_checkpoint = find_adapter(folder, "--load-dir").record is not None
    alone = (
        "give --save-lora-to-hf with --load-model-type mg --save-model-type hf to write it as a peft folder"
        if is_checkpoint
        else "give --hf-dir with the folder of its base model, --load-model-type hf and --save-model-type mg to write "
        "it as a checkpoint"
    )
    raise ConfigError(
        f"--load-dir {folder}: contains an adapter, not a complete model; {alone}, or give the base model with "
        f"--load-dir and --lora-load {folder} to merge them"
    )


def import_adapter(arguments: ConvertArguments) -> Path:
    """Convert a peft folder into a checkpoint that contains the adapter.

    Returns:
        The iter_ directory that was written in --save-dir.

    Raises:
        UserError: the adapter is damaged, not supported or of another model, or the output cannot be written.
    """
    config = read_config(str(arguments.hf_dir))
    check_kind(arguments, config)
    if arguments.ckpt_format == "torch":
        raise ConfigError("--ckpt-format torch: a checkpoint of an adapter is always torch_dist; leave the flag out")
    adapter = _open(arguments, arguments.load_dir, config, "--load-dir")
    if adapter.record is not None:
        raise ConfigError(
            f"--load-dir {arguments.load_dir}: contains a checkpoint of an adapter, which needs no import; "
            "--save-lora-to-hf writes it as a peft folder"
        )
    notice = peft_folder_notice(adapter.folder, "--load-dir")
    if notice is not None:
        logger.info(f"notice: {notice}")
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else adapter.dtype
    assets = assets_of_adapter(adapter, config)

    def finish(folder: Path) -> None:
        AdapterRecord(adapter.settings).write(folder)

    return write_megatron_checkpoint(
        Path(arguments.save_dir), adapter.catalogue, adapter, dtype, None, assets.write, "peft → adapter", finish
    )


def export_adapter(arguments: ConvertArguments) -> Path:
    """Convert a checkpoint that contains an adapter into a peft folder.

    Returns:
        --save-dir.

    Raises:
        UserError: the checkpoint is damaged or contains no adapter, or the output cannot be written.
    """
    found = find_adapter(arguments.load_dir, "--load-dir", "--load-dir and without --save-lora-to-hf")
    if found.record is None:
        raise ConfigError(f"--save-lora-to-hf: --load-dir {arguments.load_dir} is a peft folder already")
    check_hashes(found.path)
    carried = found.path / CARRIED
    if arguments.hf_dir is None and not (carried / "config.json").is_file():
        raise ConfigError(f"{carried / 'config.json'}: missing; give --hf-dir with the folder of the base model")
    config = read_config(arguments.hf_dir or carried)
    check_kind(arguments, config)
    adapter = _open(arguments, found.path, config, "--load-dir")
    base = found.record.base.path if found.record.base is not None else None
    return write_peft_folder(
        Path(arguments.save_dir),
        adapter.catalogue,
        adapter,
        adapter.settings,
        assets_of_adapter(adapter, config),
        base or arguments.hf_dir,
        PARAMS[arguments.params_dtype] if arguments.params_dtype else adapter.dtype,
    )


def merge_adapter(arguments: ConvertArguments) -> Path:
    """Merge the adapter of --lora-load into the model of --load-dir.

    Returns:
        The directory that was written: an iter_ directory or a Hugging Face folder.

    Raises:
        UserError: model or adapter are damaged or do not fit, or the output cannot be written.
    """
    load, save = Path(arguments.load_dir), Path(arguments.save_dir)
    if is_adapter_folder(load):
        raise ConfigError(f"--load-dir {load}: contains an adapter; --lora-load needs the base model there")
    if arguments.load_model_type == "mg":
        base = latest_checkpoint(load)
        if arguments.save_model_type == "hf":
            source, save = hugging_face_folders(arguments, base)
        else:
            source = Path(arguments.hf_dir) if arguments.hf_dir else base / CARRIED
        config = read_config(source)
        check_hashes(base)
        check_shape(base, config)
    else:
        base, config = load, read_config(load)
    check_kind(arguments, config)
    adapter = _open(arguments, str(arguments.lora_load), config, "--lora-load")
    if adapter.record is not None:
        check_hashes(adapter.folder)
        check_base(adapter.record, base, config)
    if arguments.save_model_type == "hf":
        assets = assets_of_adapter(adapter, config)
        return write_merged_folder(save, base, adapter, config, assets, arguments.params_dtype)
    catalogue = TensorCatalogue(config)
    model = open_model(base, catalogue)
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else common_dtype(model.dtypes.values())
    merged = MergedWeights(model, adapter, dtype)
    assets, layout = assets_of_adapter(adapter, config), target_layout(arguments, config)
    written = write_megatron_checkpoint(save, catalogue, merged, dtype, layout, assets.write, "merge → mg")
    merged.report()
    return written


def write_merged_folder(
    target: Path,
    base: Path,
    adapter: AdapterWeights,
    config: HuggingFaceConfig,
    assets: ModelAssets,
    params_dtype: str | None = None,
) -> Path:
    """Merge an adapter into its base model, write a Hugging Face folder, and log how much of the change it holds.

    Args:
        target: folder to write; an earlier export in it is replaced.
        base: Hugging Face folder or checkpoint of the base model.
        adapter: the adapter.
        config: configuration of the base model.
        assets: assets to write beside the weights.
        params_dtype: bf16, fp16 or fp32; by default the dtype of the base model.

    Returns:
        `target`.

    Raises:
        CheckpointError: base model or adapter are damaged, or `target` cannot be written.
        ConfigError: `target` is the base model or the adapter, or contains something other than an earlier export.
    """
    # Either would look like an earlier export, which an export replaces.
    if target.resolve() in (base.resolve(), adapter.folder.resolve()):
        raise ConfigError(f"{target}: holds what is merged; give another folder for the merged model")
    catalogue = TensorCatalogue(config)
    model = open_model(base, catalogue)
    dtype = PARAMS[params_dtype] if params_dtype is not None else common_dtype(model.dtypes.values())
    merged = MergedWeights(model, adapter, dtype)

    def write_assets(folder: Path) -> None:
        assets.write(folder, str(dtype).removeprefix("torch."))

    written = write_hugging_face_folder(target, catalogue, merged, dtype, write_assets, "merge → hf")
    merged.report()
    return written


def check_base(record: AdapterRecord, base: Path, config: HuggingFaceConfig) -> None:
    """Refuse another base model than the one that a checkpoint of an adapter names.

    Args:
        record: adapter.json of the checkpoint.
        base: Hugging Face folder or checkpoint of the base model.
        config: configuration of the base model.

    Raises:
        ConfigError: the base model has another hash.
        CheckpointError: the base model is damaged.
    """
    if record.base is None:
        return
    found = base_hash(base, config)
    if found.sha256 != record.base.sha256:
        raise ConfigError(f"{base}: {base_difference(record.base, found)}")


def base_difference(expected: BaseModel, found: BaseModel) -> str:
    """Return how a base model differs from the one that an adapter was trained on, as part of a message.

    Args:
        expected: base model in adapter.json.
        found: base model that is used.
    """
    source = f" ({expected.path})" if expected.path is not None else ""
    if expected.dtype != found.dtype:
        return (
            f"is not the base model of the adapter{source}: its data type is {found.dtype}, and that of the base model "
            f"{expected.dtype}; a model that was converted to another type counts as another"
        )
    return f"is not the base model of the adapter{source}: its tensors differ"


def _given_settings(arguments: ConvertArguments) -> list[str]:
    """Return the flags of an adapter's settings that the command line contains."""
    flags = {
        "--lora-target-modules": bool(arguments.lora_target_modules),
        "--lora-r": arguments.lora_r is not None,
        "--lora-alpha": arguments.lora_alpha is not None,
    }
    return [flag for flag, is_given in flags.items() if is_given]


def _open(arguments: ConvertArguments, folder: str | Path, config: HuggingFaceConfig, flag: str) -> AdapterWeights:
    """Open an adapter whose settings agree with the command line.

    The projections of a peft folder may be given by the name of their linear layer, which then gets one shared A.
    """
    found = find_adapter(folder, flag, "--load-dir")
    settings: AdapterSettings = found.settings
    problems = []
    if not isinstance(settings, LoraSettings):
        method = f"the adapter in {folder} is one of --tuning {settings.method}"
        problems = [f"{name}: {method}; leave the flag out" for name in _given_settings(arguments)]
        if problems:
            raise ConfigError(problems)
        return open_adapter(folder, config, flag)
    for name, given, stored in (
        ("--lora-r", arguments.lora_r, settings.rank),
        ("--lora-alpha", arguments.lora_alpha, settings.alpha),
    ):
        if given is not None and given != stored:
            problems.append(f"{name} {given:g}: the adapter in {folder} has {stored:g}; leave the flag out")
    chosen = settings
    if arguments.lora_target_modules:
        given_targets = LoraSettings.of(arguments.lora_target_modules).targets
        chosen = replace(settings, targets=given_targets)
        is_same = set(chosen.projections) == set(settings.projections)
        if not is_same or (found.record is not None and chosen.layers != settings.layers):
            stored_targets = " ".join(settings.targets)
            problems.append(
                f"--lora-target-modules {' '.join(arguments.lora_target_modules)}: the adapter in {folder} has "
                f"{stored_targets}; leave the flag out"
            )
    if problems:
        raise ConfigError(problems)
    return open_adapter(folder, config, flag, chosen if found.record is None else None)
