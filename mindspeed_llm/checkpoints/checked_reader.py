"""Hand a checked checkpoint to megatron-core: index and common part as they were checked, tensors by our own reader.

megatron-core makes torch's FileSystemReader, which unpickles `.metadata`, and reads common.pt with torch.load. Here it
gets a reader that has the index already, and a strategy for the common part that has it already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.base import LoadCommonStrategy
from torch.distributed.checkpoint import FileSystemReader, LoadPlan, LoadPlanner, Metadata
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

from mindspeed_llm.checkpoints.pickle_safety import CheckedCheckpoint
from mindspeed_llm.conversion.distributed_checkpoint import read_chunk
from mindspeed_llm.devices.checkpoint_reader import reading_with
from mindspeed_llm.errors import CheckpointError


class CheckedReader(FileSystemReader):
    """torch's reader with an index that is read and checked already. It reads tensors alone, without torch.load."""

    def __init__(self, checked: CheckedCheckpoint) -> None:
        super().__init__(checked.folder)
        self._checked = checked

    # Without keywords: for those, torch would fall back to an index of a single rank, a pickle of its own.
    def read_metadata(self) -> Metadata:
        return self._checked.index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for into the planner's tensors.

        Raises:
            CheckpointError: a tensor is missing, damaged, crafted, or no tensor.
        """
        index = self._checked.index
        for item in plan.items:
            wanted = item.storage_index
            entry, place = index.state_dict_metadata.get(wanted.fqn), index.storage_data.get(wanted)
            if item.type is not LoadItemType.TENSOR or not isinstance(entry, TensorStorageMetadata):
                raise CheckpointError(f"{self._checked.folder}: {wanted.fqn} is no tensor, and nothing else is read")
            chunk = entry.chunks[wanted.index or 0]  # torch's planner says which chunk it is
            if place is None or chunk.offsets != wanted.offset:
                raise CheckpointError(f"{self._checked.folder}: the index has no place for {wanted.fqn}")
            value = read_chunk(self._checked.folder / place.relative_path, wanted.fqn, place, chunk)
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                value = value.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            if target.shape != value.shape:
                raise CheckpointError(f"{self._checked.folder}: {wanted.fqn} does not fit the tensor it is read into")
            target.copy_(value)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class CheckedCommon(LoadCommonStrategy):
    """The common part of a checkpoint that is read and checked already."""

    def __init__(self, checked: CheckedCheckpoint) -> None:
        super().__init__()
        self._checked = checked

    def load_common(self, checkpoint_dir: Path) -> dict[str, Any]:
        return self._checked.common

    def load_sharded_objects(self, sharded_objects_state_dict: Any, checkpoint_dir: Path) -> Any:
        raise CheckpointError(f"{checkpoint_dir}: entries of pickled bytes are not read")

    def can_handle_sharded_objects(self) -> bool:
        return False

    def check_backend_compatibility(self, loaded_version: Any) -> None:
        """Checked by `check_checkpoint_safety`."""

    def check_version_compatibility(self, loaded_version: Any) -> None:
        """Checked by `check_checkpoint_safety`."""


def load_checked_checkpoint(wanted: dict[str, Any], checked: CheckedCheckpoint) -> dict[str, Any]:
    """megatron-core's load of what was checked. Collective.

    Args:
        wanted: a sharded state dictionary.
        checked: from `check_checkpoint_safety`.

    Returns:
        the loaded state dictionary.
    """
    with reading_with(lambda: CheckedReader(checked)):
        return dist_checkpointing.load(
            wanted, str(checked.folder), sharded_strategy=("torch_dist", 1), common_strategy=CheckedCommon(checked)
        )
