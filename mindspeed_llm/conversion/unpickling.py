"""Reading a checkpoint's .metadata: a pickle, of which only the classes that describe tensors are let in."""

from __future__ import annotations

import pickle
from pathlib import Path

from torch.distributed.checkpoint import Metadata

from mindspeed_llm.errors import CheckpointError

# What torch.distributed.checkpoint and megatron.core write there: descriptions of tensors, and where they lie.
ALLOWED = {
    "torch": ("Size", "device", "float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "torch.distributed.checkpoint.planner": ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    "collections": ("OrderedDict",),
    "pathlib": ("Path", "PosixPath", "PurePosixPath"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no description of tensors needs")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """The .metadata of a distributed checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, or would run code.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _Unpickler(file).load()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: is not there; give a whole checkpoint of megatron.core") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(f"{path}: refused ({type(error).__name__}: {error})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{path}: not the description of a distributed checkpoint")
    return metadata
