"""Looking at everything in a checkpoint that torch and megatron-core would unpickle, before they are let at it.

They call pickle.load on `.metadata`, and torch.load without weights_only on entries of bytes. So `.metadata` is read by
our own unpickler first; `common.pt` is read with weights_only; and an entry of bytes where this run expects a tensor is
refused. This program neither writes nor asks for entries of bytes, so none is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mindspeed_llm.conversion.unpickling import check_common, read_index
from mindspeed_llm.errors import CheckpointError


def check_safe(folder: Path, tensors: Collection[str]) -> None:
    """Look at everything in a folder that would be unpickled, before megatron-core does.

    Args:
        folder: of a distributed checkpoint.
        tensors: keys that this run will read as tensors.

    Raises:
        CheckpointError: something in it is damaged, could run code, or holds bytes where a tensor is expected.
    """
    index = read_index(folder)
    for key in tensors:
        entry = index.state_dict_metadata.get(key)
        if entry is not None and not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(
                f"{folder}: refused, {key} is an entry of pickled bytes where a tensor is expected; "
                "use a checkpoint from a source that you trust"
            )
    inside = folder.resolve()
    for place in (index.storage_data or {}).values():
        if not (inside / place.relative_path).resolve().is_relative_to(inside):
            raise CheckpointError(f"{folder}: refused, its index points outside the folder ({place.relative_path})")
    check_common(folder)
