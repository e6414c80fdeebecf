"""A conversion from one end to the other: checks first, a folder beside, then a rename."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
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
    COMPANIONS,
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

logger = logging.getLogger(__name__)

PARAMS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ITERATION = 1  # of a converted checkpoint


def convert(arguments: ConvertArguments) -> Path:
    """Do what the command line asks for; the folder that was written.

    Raises:
        UserError: whatever the user can put right. Nothing is left half-written.
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
    check_hashes(checkpoint)
    _check_shape(checkpoint, config)
    return to_hugging_face(checkpoint, config, target, dtype, assets=_assets(checkpoint, config))


def _assets(checkpoint: Path, config: HuggingFaceConfig) -> ModelAssets:
    """The assets of a model that goes back to Hugging Face's format.

    What a run has carried along says how its model ends answers and is asked: that holds also where another folder
    gives config and tokenizer.

    Raises:
        ConfigError: the other folder describes another model.
    """
    assets = ModelAssets.read(config)
    carried = checkpoint / CARRIED
    of_run = (checkpoint / RECORD).is_file() and (carried / "config.json").is_file()
    if not of_run or config.folder == carried:
        return assets
    logger.info(f"eos_token_id, generation settings and chat template are those of the run, from {carried}")
    return assets.with_answers_of(ModelAssets.read(read_config(carried)))


def _check_kind(arguments: ConvertArguments, config: HuggingFaceConfig) -> None:
    kind, family = arguments.model_type_hf, config.family
    if kind is not None and not is_family_name(family, kind):
        path = config.folder / "config.json"
        raise ConfigError(f"--model-type-hf {kind}: {path} describes a {family.model_type}; leave the flag out")


def _check_shape(checkpoint: Path, config: HuggingFaceConfig) -> None:
    """Refuse a config.json of another model than the checkpoint says it holds.

    Raises:
        CheckpointError: the tensors are of another model.
        ConfigError: they fit, but what no tensor reveals differs.
    """
    shape = read_checkpoint_shape(checkpoint)
    problems = [
        f"{config.folder / 'config.json'}: means {flag} {shown(theirs)}, but {shape.path} says {shown(ours)}; give "
        "--hf-dir with the config.json of that model"
        for flag, theirs, ours in (shape_differences(shape, config.model) if shape else ())
        if shape is not None and flag not in ("--vocab-size", "--padded-vocab-size")
    ]
    if problems:
        open_megatron_checkpoint(checkpoint, TensorCatalogue(config))  # names the tensors, where they do reveal it
        raise ConfigError(problems)


def to_megatron(arguments: ConvertArguments) -> Path:
    """Hugging Face → megatron-core."""
    config = read_config(arguments.load_dir)
    _check_kind(arguments, config)
    catalogue = TensorCatalogue(config)
    weights = HuggingFaceWeights(Path(arguments.load_dir), once=True)
    weights.check(catalogue)
    dtype = PARAMS[arguments.params_dtype] if arguments.params_dtype else _widest(weights.dtypes.values())
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
        (folder / CARRIED).mkdir()
        copy_model_assets(config.folder, folder / CARRIED)

    total = sum(tensor.elements for tensor in catalogue.tensors) * dtype.itemsize
    return _published(target, total, write)


def _published(target: Path, total: int, write: Callable[[Path, Callable[[int], None]], None]) -> Path:
    """Let `write` fill the first checkpoint of --save-dir, in which no run writes meanwhile.

    Args:
        target: --save-dir.
        total: bytes that will be written, for the lines of progress.
        write: takes a folder, and what counts the bytes.
    """
    _refuse_checkpoint(target)
    target.mkdir(parents=True, exist_ok=True)
    checkpoint = CheckpointDirectory(target).iteration_path(ITERATION)
    with HeldLeases() as leases:
        leases.take({"--save-dir": target})
        _refuse_checkpoint(target)
        with staged_export(checkpoint) as folder, writing_progress(total, "hf → mg") as done:
            write(folder, done)
        leases.check(thoroughly=True)
        LatestIterationFile(target).write(ITERATION)
    return checkpoint


def _refuse_checkpoint(target: Path) -> None:
    directory = CheckpointDirectory(target)
    if directory.tracker.path.exists() or directory.iteration_path(ITERATION).exists():
        raise ConfigError(f"--save-dir {target}: holds a checkpoint already; give another folder, or remove it")


def _widest(dtypes: object) -> torch.dtype:
    """One type that holds every value of a folder: a checkpoint of megatron-core has one for all its weights."""
    kinds = set(dtypes)  # type: ignore[call-overload]
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _check_layout(config: HuggingFaceConfig, ranks: int, stages: int) -> None:
    model = config.model
    problems = []
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
    """The iter_ folder (or release) that a tracker names, or the folder itself if it is one.

    Raises:
        CheckpointError: there is none, or the tracker is damaged.
    """
    named = CheckpointDirectory(folder).latest()
    if named is not None:
        return named
    if (folder / "metadata.json").is_file() or holds_rank_files(folder):
        return folder
    raise CheckpointError(f"{folder}: holds no checkpoint of megatron-core (no {TRACKER})")


def _hugging_face_folders(arguments: ConvertArguments, checkpoint: Path) -> tuple[Path, Path]:
    """Where config and tokenizer come from, and where the weights go."""
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
        f"nothing says what the model of {checkpoint} looks like: give --hf-dir with the folder of the Hugging Face "
        "model it was converted from"
    )


def open_megatron_checkpoint(checkpoint: Path, catalogue: TensorCatalogue) -> DistributedWeights | RankFileWeights:
    """The weights of a checkpoint in either layout."""
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
    """megatron-core → Hugging Face.

    Args:
        checkpoint: an iter_ folder.
        config: of the model.
        target: folder to write.
        dtype: of the weights; without it the checkpoint's.
        shard_bytes: most bytes of one file.
        assets: config.json, tokenizer and generation settings to write; without it those in the folder of `config`.

    Raises:
        CheckpointError: the checkpoint is not one of this model; or `target` holds something else than a model.
    """
    catalogue = TensorCatalogue(config)
    weights = open_megatron_checkpoint(checkpoint, catalogue)
    dtype = dtype or _widest(weights.dtypes.values())
    assets = assets or ModelAssets.read(config)
    check_export_target(target)
    with staged_export(target) as folder:
        assets.write(folder, str(dtype).removeprefix("torch."))
        writer = HuggingFaceWriter(folder, catalogue.hugging_face_shapes(), dtype, shard_bytes)
        try:
            with writing_progress(writer.total, "mg → hf") as done:
                for tensor, whole in read_ahead(weights.full_tensor, catalogue.tensors):
                    parts = split_parts(tensor, whole)
                    for (name, _), part in zip(tensor.parts, parts, strict=True):
                        writer.write(name, part)
                    done(tensor.elements * dtype.itemsize)
            writer.finish()
        finally:
            writer.close()
    return target


def check_export_target(target: Path) -> None:
    """Refuse to write over anything but an earlier export.

    Raises:
        ConfigError: the folder holds something else.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file, not a folder; give another name")
    if target.exists() and any(target.iterdir()) and not _is_export(target):
        raise ConfigError(f"{target}: is not empty; give another folder, or remove it")


def _is_export(folder: Path) -> bool:
    """Whether a folder holds nothing but what an export writes, so that another may replace it."""
    if not (folder / "config.json").is_file():
        return False
    known = {*COMPANIONS, INDEX}
    return all(path.name in known or path.match("model*.safetensors") for path in folder.iterdir())


@contextmanager
def staged_export(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when all went well, and is removed when it did not."""
    try:
        with atomic_folder(target) as folder:
            yield folder
    except (OSError, RuntimeError) as error:
        # torch.save, ending its file after a write that failed, hides that failure behind one of its own.
        failure = error if isinstance(error, OSError) else error.__context__
        if not isinstance(failure, OSError):
            raise
        raise CheckpointError(
            f"{target}: cannot be written ({failure.strerror or failure}); nothing was left there"
        ) from error


__all__ = ["convert", "latest_checkpoint", "open_megatron_checkpoint", "shard", "to_hugging_face", "to_megatron"]
