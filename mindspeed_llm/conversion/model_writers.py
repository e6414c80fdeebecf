"""Write a model or an adapter to a temporary directory that is renamed when it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mindspeed_llm.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_peft_folder
from mindspeed_llm.arguments.hugging_face_config import has_hugging_face_weights
from mindspeed_llm.console.progress import writing_progress
from mindspeed_llm.conversion.distributed_checkpoint import write_distributed_checkpoint
from mindspeed_llm.conversion.hugging_face_weights import (
    ASSET_FILES,
    INDEX,
    SHARD_BYTES,
    SINGLE,
    HuggingFaceWriter,
)
from mindspeed_llm.conversion.model_weights import FullWeights
from mindspeed_llm.conversion.rank_files import RankLayout, write_rank_files
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_mapping import split_parts
from mindspeed_llm.conversion.tensor_streams import read_ahead
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.lease import HeldLeases
from mindspeed_llm.storage.atomic_write import atomic_folder
from mindspeed_llm.storage.checkpoint_directory import CARRIED, CheckpointDirectory, LatestIterationFile

ITERATION = 1  # iteration number of a converted checkpoint


def write_hugging_face_folder(
    target: Path,
    catalogue: TensorCatalogue,
    weights: FullWeights,
    dtype: torch.dtype,
    write_assets: Callable[[Path], None],
    label: str,
    shard_bytes: int = SHARD_BYTES,
    before_rename: Callable[[], None] = lambda: None,
) -> Path:
    """Write a folder of safetensors files and assets; an earlier export in `target` is replaced.

    Args:
        target: folder to write.
        catalogue: tensors to write; those of an adapter are written to adapter_model.safetensors.
        weights: weights to read the tensors from.
        dtype: dtype of the weights.
        write_assets: writes the other files into a directory.
        label: what is converted, for the progress lines.
        shard_bytes: maximum size of one safetensors file in bytes.
        before_rename: called when everything is written.

    Returns:
        `target`.

    Raises:
        CheckpointError: a tensor cannot be read, or `target` cannot be written.
        ConfigError: `target` contains something other than an earlier export.
    """
    check_export_target(target, catalogue.is_adapter)
    single = ADAPTER_WEIGHTS if catalogue.is_adapter else SINGLE
    with staged_export(target) as folder:
        write_assets(folder)
        writer = HuggingFaceWriter(folder, catalogue.hugging_face_shapes(), dtype, shard_bytes, single)
        try:
            with writing_progress(writer.total, label) as done:
                for tensor, value in read_ahead(weights.full_tensor, catalogue.tensors):
                    parts = split_parts(tensor, value)
                    for (name, _), part in zip(tensor.parts, parts, strict=True):
                        writer.write(name, part)
                    done(tensor.elements * dtype.itemsize)
            writer.finish()
        finally:
            # Also after an error, so that no thread still flushes a file of the directory that is removed next.
            writer.close()
        before_rename()
    return target


def write_megatron_checkpoint(
    target: Path,
    catalogue: TensorCatalogue,
    weights: FullWeights,
    dtype: torch.dtype,
    layout: RankLayout | None,
    write_assets: Callable[[Path], None],
    label: str,
    finish: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write the first checkpoint of --save-dir.

    Args:
        target: --save-dir.
        catalogue: tensors to write.
        weights: weights to read the tensors from.
        dtype: dtype of the weights.
        layout: layout of per-rank files; None for a distributed checkpoint.
        write_assets: writes config.json, tokenizer and generation settings into a directory.
        label: what is converted, for the progress lines.
        finish: called with the directory of the checkpoint when its weights are written.

    Returns:
        The iter_ directory that was written.

    Raises:
        ConfigError: `target` contains a model, an adapter or a checkpoint already.
        CheckpointError: a tensor cannot be read, or the output cannot be written.
        LeaseError: a run or another conversion writes to `target`.
    """
    if has_hugging_face_weights(target) or is_peft_folder(target):
        kind = "an adapter of peft" if is_peft_folder(target) else "a Hugging Face model"
        raise ConfigError(
            f"--save-dir {target}: holds {kind}, which could not be loaded any more with a checkpoint in it; give "
            "another folder"
        )

    def read(tensor: CatalogueTensor) -> torch.Tensor:
        return weights.full_tensor(tensor).to(dtype)

    def write(folder: Path, done: Callable[[int], None]) -> None:
        if layout is not None:
            write_rank_files(folder, catalogue, read, layout, dtype, done)
        else:
            write_distributed_checkpoint(folder, catalogue, read, dtype, done)
        # Config and tokenizer are part of the checkpoint, so that it can be converted back without the original folder.
        (folder / CARRIED).mkdir()
        write_assets(folder / CARRIED)
        finish(folder)

    total = sum(tensor.elements for tensor in catalogue.tensors) * dtype.itemsize
    return publish_checkpoint(target, total, write, label)


def publish_checkpoint(
    target: Path, total: int, write: Callable[[Path, Callable[[int], None]], None], label: str = "hf → mg"
) -> Path:
    """Write the first checkpoint of --save-dir while holding the lease of that directory.

    Args:
        target: --save-dir.
        total: bytes that will be written, for the progress lines.
        write: fills a directory; its second parameter is a callback that receives the number of bytes written.
        label: what is converted, for the progress lines.

    Returns:
        The iter_ directory that was written.

    Raises:
        ConfigError: the directory contains a checkpoint already.
        CheckpointError: the checkpoint cannot be written.
        LeaseError: a run or another conversion writes to the directory.
    """
    _refuse_checkpoint(target)
    target.mkdir(parents=True, exist_ok=True)
    checkpoint = CheckpointDirectory(target).iteration_path(ITERATION)
    with HeldLeases() as leases:
        leases.take({"--save-dir": target})
        # Again: before the lease was taken another program may have written a checkpoint.
        _refuse_checkpoint(target)
        with staged_export(checkpoint) as folder, writing_progress(total, label) as done:
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


def check_export_target(target: Path, is_adapter: bool = False) -> None:
    """Refuse a target that is neither empty nor an earlier export of the same kind.

    Args:
        target: folder to be written; it may not exist yet.
        is_adapter: whether an adapter will be written, which must not replace a complete model.

    Raises:
        ConfigError: it is a file, or contains files that such an export does not write.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file, not a folder; give another name")
    if target.exists() and any(target.iterdir()) and not is_export(target, is_adapter):
        raise ConfigError(f"{target}: is not empty; give another folder, or remove it")


def is_export(folder: Path, is_adapter: bool = False) -> bool:
    """Return whether a folder contains only files that an export writes, so that a new export may replace it.

    Args:
        folder: the folder.
        is_adapter: whether it is the export of an adapter, and not of a complete model.
    """
    if is_adapter:
        known = {*ASSET_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS} - {"config.json"}
        return is_peft_folder(folder) and all(path.name in known for path in folder.iterdir())
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
