"""Pass a checked checkpoint to megatron-core without unpickling any file.

megatron-core creates torch's FileSystemReader, which unpickles `.metadata`, and reads common.pt with torch.load. Here
it gets a reader that already has the checked index, and a strategy that already has the checked common part. Tensors
are read by `conversion.distributed_checkpoint`.
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
    """A FileSystemReader of torch that uses a checked index, and reads only tensors, without torch.load.

    Args:
        checked: from `check_checkpoint_safety`.
    """

    def __init__(self, checked: CheckedCheckpoint) -> None:
        super().__init__(checked.folder)
        self._checked = checked

    # No keyword arguments: if this call fails, torch tries again with `rank`, to read the pickled index of one rank.
    # That second call must fail too.
    def read_metadata(self) -> Metadata:
        """Return the checked index."""
        return self._checked.index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the tensors of a plan into the tensors of the planner.

        Args:
            plan: the tensors to read, and which part of each.
            planner: provides the target tensors.

        Returns:
            A future that is already complete.

        Raises:
            CheckpointError: an entry is missing, damaged, manipulated, not a tensor, or does not have the shape of its
                target.
        """
        index = self._checked.index
        for item in plan.items:
            wanted = item.storage_index
            entry, location = index.state_dict_metadata.get(wanted.fqn), index.storage_data.get(wanted)
            if item.type is not LoadItemType.TENSOR or not isinstance(entry, TensorStorageMetadata):
                raise CheckpointError(
                    f"{self._checked.folder}: {wanted.fqn} is not a tensor, and only tensors are read"
                )
            chunk = entry.chunks[wanted.index or 0]  # torch's planner sets the number of the chunk
            if location is None or chunk.offsets != wanted.offset:
                raise CheckpointError(
                    f"{self._checked.folder}: the index does not contain the location of {wanted.fqn}"
                )
            value = read_chunk(self._checked.folder / location.relative_path, wanted.fqn, location, chunk)
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                value = value.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            if target.shape != value.shape:
                # copy_ would broadcast a smaller tensor.
                raise CheckpointError(f"{self._checked.folder}: {wanted.fqn} does not have the shape of its target")
            target.copy_(value)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class CheckedCommon(LoadCommonStrategy):
    """A strategy of megatron-core that returns the checked common part of a checkpoint.

    Args:
        checked: from `check_checkpoint_safety`.
    """

    def __init__(self, checked: CheckedCheckpoint) -> None:
        super().__init__()
        self._checked = checked

    def load_common(self, checkpoint_dir: Path) -> dict[str, Any]:
        """Return the checked common part; no file is read."""
        return self._checked.common

    def load_sharded_objects(self, sharded_objects_state_dict: Any, checkpoint_dir: Path) -> Any:
        """Refuse to read pickled objects.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{checkpoint_dir}: entries of pickled bytes are not read")

    def can_handle_sharded_objects(self) -> bool:
        """Return False: this strategy does not read pickled objects."""
        return False

    def check_backend_compatibility(self, loaded_version: Any) -> None:
        """Do nothing, because `check_checkpoint_safety` has checked the format."""

    def check_version_compatibility(self, loaded_version: Any) -> None:
        """Do nothing, because `check_checkpoint_safety` has checked the format."""


def load_checked_checkpoint(wanted: dict[str, Any], checked: CheckedCheckpoint) -> dict[str, Any]:
    """Load a checked checkpoint with megatron-core. Collective.

    Args:
        wanted: the sharded state dictionary to load.
        checked: from `check_checkpoint_safety`.

    Returns:
        The loaded state dictionary.
    """
    # The names of the two strategies are given, so that megatron-core does not choose them from the files.
    with reading_with(lambda: CheckedReader(checked)):
        return dist_checkpointing.load(
            wanted, str(checked.folder), sharded_strategy=("torch_dist", 1), common_strategy=CheckedCommon(checked)
        )
