"""Convert a model in either direction: check the input, write a temporary directory, rename it when it is complete."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mindspeed_llm.arguments.convert_arguments import ConvertArguments
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, has_hugging_face_weights, read_config
from mindspeed_llm.arguments.loaded_shape import read_checkpoint_shape, shape_differences, shown
from mindspeed_llm.arguments.model_arguments import pad_vocab_size
from mindspeed_llm.console.progress import writing_progress
from mindspeed_llm.conversion.distributed_checkpoint import DistributedWeights, write_distributed_checkpoint
from mindspeed_llm.conversion.hugging_face_weights import (
    ASSET_FILES,
    INDEX,
    SHARD_BYTES,
    HuggingFaceWeights,
    HuggingFaceWriter,
    copy_model_assets,
)
from mindspeed_llm.conversion.model_assets import ModelAssets
from mindspeed_llm.conversion.rank_files import RankFileWeights, RankLayout, holds_rank_files, write_rank_files
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_mapping import shard, split_parts
from mindspeed_llm.conversion.tensor_streams import read_ahead
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.families import is_family_name
from mindspeed_llm.lease import HeldLeases
from mindspeed_llm.storage.atomic_write import atomic_folder
from mindspeed_llm.storage.checkpoint_directory import (
    CARRIED,
    RECORD,
    TRACKER,
    CheckpointDirectory,
    LatestIterationFile,
)
from mindspeed_llm.storage.checkpoint_file_list import check_hashes
from mindspeed_llm.storage.hub_names import download_advice

logger = logging.getLogger(__name__)

PARAMS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ITERATION = 1  # iteration number of a converted checkpoint


def convert(arguments: ConvertArguments) -> Path:
    """Convert a model as the arguments of convert_ckpt.py specify.

    Returns:
        The directory that was written: an iter_ directory, or a Hugging Face folder.

    Raises:
        UserError: invalid arguments, or input that is missing, damaged or of another model. No partial output remains.
    """
    if arguments.load_model_type == arguments.save_model_type:
        raise ConfigError(
            f"--load-model-type and --save-model-type are both {arguments.load_model_type}; one must be hf, one mg"
        )
    if arguments.load_model_type == "hf":
        return to_megatron(arguments)
    checkpoint = latest_checkpoint(Path(arguments.load_dir))
    source, target = _hugging_face_folders(arguments, checkpoint)
    config = read_config(source)
    _check_kind(arguments, config)
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else None
    # Hashes first: in a damaged checkpoint the shape, and every message about it, could be wrong as well.
    check_hashes(checkpoint)
    _check_shape(checkpoint, config)
    return to_hugging_face(checkpoint, config, target, dtype, assets=_assets(checkpoint, config))


def _assets(checkpoint: Path, config: HuggingFaceConfig) -> ModelAssets:
    """Return the assets of a model that is converted to the Hugging Face format.

    End tokens, generation settings and chat template of a checkpoint that a run saved are those of its training data.
    They are used even if config and tokenizer come from another folder.

    Raises:
        ConfigError: an asset cannot be read, or the other folder describes another model.
    """
    assets = ModelAssets.read(config)
    carried = checkpoint / CARRIED
    # Only runs write run.json. The assets in a converted checkpoint are a copy of the original model's.
    saved_by_run = (checkpoint / RECORD).is_file() and (carried / "config.json").is_file()
    if not saved_by_run or config.folder == carried:
        return assets
    logger.info(f"eos_token_id, generation settings and chat template are taken from the run: {carried}")
    return assets.with_generation_settings_of(ModelAssets.read(read_config(carried)))


def _check_kind(arguments: ConvertArguments, config: HuggingFaceConfig) -> None:
    """Refuse a --model-type-hf that is not the family in config.json."""
    kind, family = arguments.model_type_hf, config.family
    if kind is not None and not is_family_name(family, kind):
        path = config.folder / "config.json"
        raise ConfigError(f"--model-type-hf {kind}: {path} describes a {family.model_type}; leave the flag out")


def _check_shape(checkpoint: Path, config: HuggingFaceConfig) -> None:
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
    _check_kind(arguments, config)
    catalogue = TensorCatalogue(config)
    weights = HuggingFaceWeights(Path(arguments.load_dir), once=True)
    weights.check(catalogue)
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else _common_dtype(weights.dtypes.values())
    ranks, stages = arguments.target_tensor_parallel_size, arguments.target_pipeline_parallel_size
    rows = pad_vocab_size(config.vocab_size, arguments.make_vocab_size_divisible_by, ranks)
    if arguments.ckpt_format == "torch":
        _check_layout(config, ranks, stages)
    target = Path(arguments.save_dir)
    if has_hugging_face_weights(target):
        raise ConfigError(
            f"--save-dir {target}: holds a Hugging Face model, which could not be loaded any more with a checkpoint in "
            "it; give another folder"
        )

    def read(tensor: CatalogueTensor) -> torch.Tensor:
        return weights.full_tensor(tensor).to(dtype)

    def write(folder: Path, done: Callable[[int], None]) -> None:
        if arguments.ckpt_format == "torch":
            write_rank_files(folder, catalogue, read, RankLayout(ranks, stages, rows), dtype, done)
        else:
            write_distributed_checkpoint(folder, catalogue, read, dtype, done)
        # Config and tokenizer are part of the checkpoint, so that it can be converted back without the original folder.
        (folder / CARRIED).mkdir()
        copy_model_assets(config.folder, folder / CARRIED)

    total = sum(tensor.elements for tensor in catalogue.tensors) * dtype.itemsize
    return _publish_checkpoint(target, total, write)


def _publish_checkpoint(target: Path, total: int, write: Callable[[Path, Callable[[int], None]], None]) -> Path:
    """Write the first checkpoint of --save-dir while holding the lease of that directory.

    Args:
        target: --save-dir.
        total: bytes that will be written, for the progress lines.
        write: fills a directory; its second parameter is a callback that receives the number of bytes written.
    """
    _refuse_checkpoint(target)
    target.mkdir(parents=True, exist_ok=True)
    checkpoint = CheckpointDirectory(target).iteration_path(ITERATION)
    with HeldLeases() as leases:
        leases.take({"--save-dir": target})
        # Again: before the lease was taken another program may have written a checkpoint.
        _refuse_checkpoint(target)
        with staged_export(checkpoint) as folder, writing_progress(total, "hf → mg") as done:
            write(folder, done)
        # The tracker makes the checkpoint visible, so it is written last, and only by the holder of the lease.
        leases.check(thoroughly=True)
        LatestIterationFile(target).write(ITERATION)
    return checkpoint


def _refuse_checkpoint(target: Path) -> None:
    """Refuse a directory that contains a tracker or the checkpoint that would be written."""
    directory = CheckpointDirectory(target)
    if directory.tracker.path.exists() or directory.iteration_path(ITERATION).exists():
        raise ConfigError(f"--save-dir {target}: holds a checkpoint already; give another folder, or remove it")


def _common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype that all tensors share, else float32."""
    distinct = set(dtypes)
    # Neither of fp16 and bf16 holds all values of the other; float32 holds all of both.
    return distinct.pop() if len(distinct) == 1 else torch.float32


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


def latest_checkpoint(folder: Path) -> Path:
    """Return the newest checkpoint of a directory.

    Args:
        folder: a --save directory with a tracker file, or a checkpoint (an iter_ directory) itself.

    Returns:
        The iter_ directory (or `release`) that the tracker names, or `folder` if it is a checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, or the tracker is damaged.
    """
    named = CheckpointDirectory(folder).latest()
    if named is not None:
        return named
    # Without a tracker the directory itself may be a checkpoint, such as one iter_ directory of a run.
    if (folder / "metadata.json").is_file() or holds_rank_files(folder):
        return folder
    raise CheckpointError(f"{folder}: holds no checkpoint of megatron-core (no {TRACKER}){download_advice(folder)}")


def _hugging_face_folders(arguments: ConvertArguments, checkpoint: Path) -> tuple[Path, Path]:
    """Return the folder of config and tokenizer, and the folder for the weights.

    As in MindSpeed-LLM, --save-dir may be the folder of the original model; the weights then go to its directory mg2hf.
    """
    save = Path(arguments.save_dir)
    original = (save / "config.json").is_file() and not _is_export(save / "mg2hf")
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


def open_megatron_checkpoint(checkpoint: Path, catalogue: TensorCatalogue) -> DistributedWeights | RankFileWeights:
    """Open the weights of a distributed checkpoint or of per-rank checkpoint files.

    Args:
        checkpoint: an iter_ directory.
        catalogue: tensors of the model.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those of the catalogue.
    """
    if (checkpoint / "metadata.json").is_file():
        return DistributedWeights(checkpoint, catalogue)
    return RankFileWeights(checkpoint, catalogue, once=True)


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
    dtype = dtype or _common_dtype(weights.dtypes.values())
    assets = assets or ModelAssets.read(config)
    check_export_target(target)
    with staged_export(target) as folder:
        assets.write(folder, str(dtype).removeprefix("torch."))
        writer = HuggingFaceWriter(folder, catalogue.hugging_face_shapes(), dtype, shard_bytes)
        try:
            with writing_progress(writer.total, "mg → hf") as done:
                for tensor, value in read_ahead(weights.full_tensor, catalogue.tensors):
                    parts = split_parts(tensor, value)
                    for (name, _), part in zip(tensor.parts, parts, strict=True):
                        writer.write(name, part)
                    done(tensor.elements * dtype.itemsize)
            writer.finish()
        finally:
            # Also after an error, so that no thread still flushes a file of the directory that is removed next.
            writer.close()
    return target


def check_export_target(target: Path) -> None:
    """Refuse a target that is neither empty nor an earlier export.

    Args:
        target: folder to be written; it may not exist yet.

    Raises:
        ConfigError: it is a file, or contains files that an export does not write.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file, not a folder; give another name")
    if target.exists() and any(target.iterdir()) and not _is_export(target):
        raise ConfigError(f"{target}: is not empty; give another folder, or remove it")


def _is_export(folder: Path) -> bool:
    """Return whether a folder contains only files that an export writes, so that a new export may replace it."""
    if not (folder / "config.json").is_file():
        return False
    known = {*ASSET_FILES, INDEX}
    return all(path.name in known or path.match("model*.safetensors") for path in folder.iterdir())


@contextmanager
def staged_export(target: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `target` on success and is removed after an error.

    Args:
        target: final path of the directory.

    Yields:
        Empty directory beside `target`.

    Raises:
        CheckpointError: the disk is full, or the directory cannot be written.
    """
    try:
        with atomic_folder(target) as folder:
            yield folder
    except (OSError, RuntimeError) as error:
        # After a failed write torch.save raises a RuntimeError while it closes its file, with the OSError as context.
        failure = error if isinstance(error, OSError) else error.__context__
        if not isinstance(failure, OSError):
            raise
        raise CheckpointError(
            f"{target}: cannot be written ({failure.strerror or failure}); no partial output remains"
        ) from error


__all__ = ["convert", "latest_checkpoint", "open_megatron_checkpoint", "shard", "to_hugging_face", "to_megatron"]
