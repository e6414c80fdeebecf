"""Read `.metadata`, the index of a distributed checkpoint, without unpickling it.

torch's and megatron-core's readers call pickle.load on it. Here the description that `pickle_reader.py` returns is
checked against what torch 2.7 to 2.13 and megatron-core 0.13 to 0.16 write, and a new index is made of checked values:

    Metadata
      state_dict_metadata   name -> TensorStorageMetadata(properties, size, chunks) or BytesStorageMetadata
      storage_data          MetadataIndex(name, offset) -> _StorageInfo(relative_path, offset, length)
      version

What no reader here needs (planner_data, all_local_plans, mcore_data, storage_meta with the path of another machine) is
left out. Every other attribute ends the reading.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from mindspeed_llm.conversion.pickle_reader import (
    ForbiddenNameError,
    PickledName,
    PickledObject,
    PickleError,
    gc_disabled,
    read_pickle,
)
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.safe_open import regular_file_opener

FILE_NAME = ".metadata"
TRUST = "use a checkpoint from a source that you trust"
LARGEST = 1 << 30  # bytes; about four million tensors

_METADATA = "torch.distributed.checkpoint.metadata"
_MCORE = "megatron.core.dist_checkpointing.strategies.torch"
_INDEX = frozenset({PickledName(_METADATA, "Metadata"), PickledName(_MCORE, "MCoreMetadata")})
_TENSOR = PickledName(_METADATA, "TensorStorageMetadata")
_BYTES = PickledName(_METADATA, "BytesStorageMetadata")
_CHUNK = PickledName(_METADATA, "ChunkStorageMetadata")
_PROPERTIES = PickledName(_METADATA, "TensorProperties")
_KEY = PickledName(_METADATA, "MetadataIndex")
_PLACE = PickledName("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = PickledName("torch", "Size")
_LAYOUT = PickledName("torch.serialization", "_get_layout")
_ENCODING = PickledName(_METADATA, "_MEM_FORMAT_ENCODING")
DTYPES: dict[PickledName, torch.dtype] = {
    PickledName("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
# Names that may appear; those that nothing below looks for belong to the parts that are left out.
ALLOWED: frozenset[PickledName] = frozenset(
    {
        *_INDEX, _TENSOR, _BYTES, _CHUNK, _PROPERTIES, _KEY, _PLACE, _SIZE, _LAYOUT, _ENCODING, *DTYPES,
        PickledName(_METADATA, "StorageMeta"), PickledName("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
        PickledName(_MCORE, "MCoreSavePlan"), PickledName("collections", "OrderedDict"),
        *(PickledName("torch.distributed.checkpoint.planner", name)
          for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")),
        *(PickledName(module, name) for module in ("pathlib", "pathlib._local")
          for name in ("Path", "PosixPath", "PurePosixPath")),
    }
)  # fmt: skip
_MOST_DIMENSIONS, _MOST = 64, 1 << 62


def read_checkpoint_index(folder: Path) -> Metadata:
    """The index of a distributed checkpoint, made from checked values alone.

    Raises:
        CheckpointError: `.metadata` is missing, damaged, or holds anything but the index of a checkpoint.
    """
    path = folder / FILE_NAME
    try:
        with open(path, "rb", opener=regular_file_opener) as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise CheckpointError(f"{path}: larger than {LARGEST >> 30} GiB, so not an index; {TRUST}")
            content = file.read(LARGEST)
        with gc_disabled():
            return _index(read_pickle(content, ALLOWED.__contains__))
    except ForbiddenNameError as error:
        raise CheckpointError(f"{path}: refused, loading it could run code: {error}; {TRUST}") from None
    except PickleError as error:
        raise CheckpointError(f"{path}: refused, it is damaged or crafted: {error}; {TRUST}") from None
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, use another one") from None
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error or 'out of memory'}); use another checkpoint") from error


def _index(described: Any) -> Metadata:
    if type(described) is not PickledObject or described.kind not in _INDEX:
        raise PickleError("it is not the index of a checkpoint")
    known = ("planner_data", "storage_meta", "version", "all_local_plans", "mcore_data")
    fields = _fields(described, described.kind, ("state_dict_metadata", "storage_data"), known)
    entries, places = fields["state_dict_metadata"], fields["storage_data"]
    if type(entries) is not dict or type(places) is not dict:
        raise PickleError("its tensors or their places are no dict")
    version = fields.get("version")
    index = Metadata(
        state_dict_metadata={_text(name): _entry(name, entry) for name, entry in entries.items()},
        storage_data={_key(key): _place(place) for key, place in places.items()},
        storage_meta=StorageMeta(),
    )
    if len(index.storage_data) != len(places):
        raise PickleError("it has two places for one part of a tensor")
    if hasattr(index, "version"):  # a field since torch 2.9
        index.version = None if version is None else _text(version)
    return index


def _fields(made: Any, kind: PickledName, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The attributes of an object of a known class: all that are required, and no unknown ones."""
    if type(made) is not PickledObject or made.kind != kind or made.arguments:
        raise PickleError(f"it has something else where a {kind.name} belongs")
    state: Any = made.state if made.state is not None else {}
    if type(state) is not dict:
        raise PickleError(f"it has a {kind.name} with attributes that no dict holds")
    for name in required:
        if name not in state:
            raise PickleError(f"it has a {kind.name} without {name}")
    if len(state) != len(required):
        for name in state:
            if name not in required and name not in optional:
                raise PickleError(f"it has a {kind.name} with the unknown attribute {str(name)[:60]!a}")
    return state


def _entry(name: str, entry: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(entry) is PickledObject and entry.kind == _BYTES:
        _fields(entry, _BYTES, ())
        return BytesStorageMetadata()
    fields = _fields(entry, _TENSOR, ("properties", "size", "chunks"))
    size, chunks = _size(fields["size"]), fields["chunks"]
    if type(chunks) is not list:
        raise PickleError(f"it has no list of chunks for {name[:100]!a}")
    return TensorStorageMetadata(_properties(fields["properties"]), size, [_chunk(chunk, size) for chunk in chunks])


def _properties(made: Any) -> TensorProperties:
    """The state is (dtype, layout, requires_grad, encoding of the memory format, pin_memory)."""
    state: Any = made.state if type(made) is PickledObject and made.kind == _PROPERTIES and not made.arguments else None
    if type(state) is not tuple or len(state) != 5:
        raise PickleError("it has a tensor without properties")
    dtype, layout, requires_grad, encoding, pinned = state
    if type(dtype) is not PickledName or dtype not in DTYPES:
        raise PickleError("it has a tensor without a dtype")
    if type(layout) is not PickledObject or layout.kind != _LAYOUT or layout.arguments != ("torch.strided",):
        raise PickleError("it has a tensor that is not dense")
    if (
        type(encoding) is not PickledObject
        or encoding.kind != _ENCODING
        or encoding.arguments not in ((0,), (1,), (2,))
    ):
        raise PickleError("it has a tensor with an unknown memory format")
    if type(requires_grad) is not bool or type(pinned) is not bool:
        raise PickleError("it has a tensor with unknown properties")
    return TensorProperties(dtype=DTYPES[dtype])


def _chunk(made: Any, whole: torch.Size) -> ChunkStorageMetadata:
    fields = _fields(made, _CHUNK, ("offsets", "sizes"))
    offsets, sizes = _size(fields["offsets"]), _size(fields["sizes"])
    if len(offsets) != len(whole) or len(sizes) != len(whole):
        raise PickleError("it has a chunk with other dimensions than its tensor")
    for offset, size, end in zip(offsets, sizes, whole, strict=True):
        if offset + size > end:
            raise PickleError("it has a chunk that reaches beyond its tensor")
    return ChunkStorageMetadata(offsets, sizes)


def _key(made: Any) -> MetadataIndex:
    fields = _fields(made, _KEY, ("fqn",), ("offset", "index"))
    offset, position = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _text(fields["fqn"]),
        None if offset is None else _size(offset),
        None if position is None else _number(position),
    )


def _place(made: Any) -> _StorageInfo:
    fields = _fields(made, _PLACE, ("relative_path", "offset", "length"), ("transform_descriptors",))
    name = _text(fields["relative_path"])
    if not name or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise PickleError(f"it places a tensor outside the folder, in {name[:100]!a}")
    if fields.get("transform_descriptors"):
        raise PickleError("it has compressed or otherwise transformed tensors, which are not read")
    return _StorageInfo(name, _number(fields["offset"]), _number(fields["length"]))


def _size(made: Any) -> torch.Size:
    if type(made) is not PickledObject or made.kind != _SIZE or len(made.arguments) != 1 or made.state is not None:
        raise PickleError("it has something else where a size belongs")
    numbers = made.arguments[0]
    if type(numbers) is not tuple or len(numbers) > _MOST_DIMENSIONS:
        raise PickleError("it has a size that is no tuple of numbers")
    for number in numbers:
        if type(number) is not int or not 0 <= number < _MOST:
            raise PickleError("it has a size that is no tuple of numbers")
    return torch.Size(numbers)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise PickleError("it has something else where a number belongs")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise PickleError("it has something else where a name belongs")
    return value
