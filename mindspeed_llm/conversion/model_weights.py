"""Open the weights of a model: a Hugging Face folder, or a checkpoint of megatron-core in either format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

from mindspeed_llm.adapters import AdapterRecord
from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.conversion.distributed_checkpoint import DistributedWeights
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWeights
from mindspeed_llm.conversion.rank_files import RankFileWeights, holds_rank_files
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.errors import CheckpointError, ConfigError
from mindspeed_llm.storage.checkpoint_directory import TRACKER, CheckpointDirectory
from mindspeed_llm.storage.hub_names import download_advice

PARAMS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PARAM_NAMES = {dtype: name for name, dtype in PARAMS.items()}


class FullWeights(Protocol):
    """Weights from which full tensors of megatron-core can be read."""

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read a full tensor of megatron-core.

        Args:
            tensor: one of the catalogue.

        Returns:
            Tensor [*tensor.shape].
        """
        ...


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the dtype that all tensors share, else float32."""
    distinct = set(dtypes)
    # Neither of fp16 and bf16 holds all values of the other; float32 holds all of both.
    return distinct.pop() if len(distinct) == 1 else torch.float32


def is_checkpoint(folder: Path) -> bool:
    """Return whether a directory is itself a checkpoint of megatron-core, and not a directory of checkpoints."""
    return (folder / "metadata.json").is_file() or holds_rank_files(folder)


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
    if is_checkpoint(folder):
        return folder
    raise CheckpointError(f"{folder}: holds no checkpoint of megatron-core (no {TRACKER}){download_advice(folder)}")


def open_megatron_checkpoint(checkpoint: Path, catalogue: TensorCatalogue) -> DistributedWeights | RankFileWeights:
    """Open the weights of a distributed checkpoint or of per-rank checkpoint files.

    Args:
        checkpoint: an iter_ directory.
        catalogue: tensors of the model.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors are not those of the catalogue.
        ConfigError: the checkpoint contains an adapter, but the catalogue describes a complete model.
    """
    if not catalogue.is_adapter and AdapterRecord.read(checkpoint) is not None:
        raise ConfigError(
            f"{checkpoint}: contains an adapter, not a complete model. convert_ckpt.py --save-lora-to-hf writes it as "
            "a peft folder, and --lora-load with the base model in --load-dir merges it"
        )
    if (checkpoint / "metadata.json").is_file():
        return DistributedWeights(checkpoint, catalogue)
    return RankFileWeights(checkpoint, catalogue, once=True)


def open_model(
    folder: Path, catalogue: TensorCatalogue, once: bool = True
) -> HuggingFaceWeights | DistributedWeights | RankFileWeights:
    """Open the weights of a complete model.

    Args:
        folder: Hugging Face folder, directory of checkpoints with a tracker, or a checkpoint (an iter_ directory).
        catalogue: tensors of the model.
        once: whether this process is the only one that reads the files; see `HuggingFaceWeights`.

    Raises:
        CheckpointError: there are no weights, or they are damaged or of another model.
        ConfigError: the checkpoint contains an adapter.
    """
    if is_hugging_face_folder(folder) and not is_checkpoint(folder):
        weights = HuggingFaceWeights(folder, once=once)
        weights.check(catalogue)
        return weights
    return open_megatron_checkpoint(latest_checkpoint(folder), catalogue)
