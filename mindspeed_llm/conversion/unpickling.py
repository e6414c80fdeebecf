"""Reading a checkpoint's `.metadata`, a pickle, without running code from it.

torch's and megatron-core's readers call pickle.load on it. Here an unpickler reads it that knows the classes of a
checkpoint's index and no others.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from mindspeed_llm.errors import CheckpointError

_CHECKPOINT = "torch.distributed.checkpoint"
# Everything that an index written by torch 2.7 to 2.13 and megatron-core 0.13 to 0.16 consists of.
ALLOWED: frozenset[tuple[str, str]] = frozenset(
    {
        *((f"{_CHECKPOINT}.metadata", name) for name in (
            "Metadata", "MetadataIndex", "ChunkStorageMetadata", "TensorStorageMetadata", "BytesStorageMetadata",
            "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta",
        )),
        *((f"{_CHECKPOINT}.planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData",
                                                       "BytesIOWriteData")),
        (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
        (f"{_CHECKPOINT}.filesystem", "_StoragePrefix"),
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
        ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        *(("pathlib", name) for name in ("Path", "PosixPath", "PurePosixPath")),
    }
)  # fmt: skip
_BUILTINS = frozenset({"set", "frozenset", "dict", "list", "tuple"})


class _IndexUnpickler(pickle.Unpickler):
    """Knows the classes of an index; anything else ends the reading before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED or (module == "builtins" and name in _BUILTINS):
            return super().find_class(module, name)
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype | torch.layout | torch.memory_format):
            return value
        raise CheckpointError(f"it names {module}.{name}, which no index of a checkpoint holds")


def read_index(folder: Path) -> Metadata:
    """The `.metadata` of a distributed checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or would import anything but the classes of an index.
    """
    path = folder / ".metadata"
    try:
        index = _IndexUnpickler(io.BytesIO(path.read_bytes())).load()
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: refused, loading it could run code: {error}. Use a checkpoint from a source that you trust"
        ) from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, use another one") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}); use another checkpoint") from error
    if not isinstance(index, Metadata):
        raise CheckpointError(f"{path}: holds a {type(index).__name__}, not the index of a checkpoint; use another one")
    return index


def check_common(folder: Path) -> None:
    """Read `common.pt`, what a checkpoint holds besides tensors, with weights_only.

    Raises:
        CheckpointError: it is missing, damaged or could run code.
    """
    path = folder / "common.pt"
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, use another one") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it is damaged or loading it could run code "
            f"({' '.join(str(error).split())[:120]}); use a checkpoint from a source that you trust"
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}); use another checkpoint") from error
