"""Read `.metadata`, the index of a distributed checkpoint, without unpickling it.

The readers of torch and megatron-core call pickle.load on this file, which can run code. Here the description that
`pickle_reader.py` returns is checked against what torch 2.7 to 2.13 and megatron-core 0.13 to 0.16 write. A new index
is built from the checked values:

    Metadata
      state_dict_metadata   name -> TensorStorageMetadata(properties, size, chunks) or BytesStorageMetadata
      storage_data          MetadataIndex(name, offset) -> _StorageInfo(relative_path, offset, length)
      version

Attributes that no reader in this program needs (planner_data, all_local_plans, mcore_data, storage_meta with a path of
another machine) are left out. Any other attribute is an error.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
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
_STORAGE_INFO = PickledName("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_SIZE = PickledName("torch", "Size")
_LAYOUT = PickledName("torch.serialization", "_get_layout")
_ENCODING = PickledName(_METADATA, "_MEM_FORMAT_ENCODING")
# Python 3.11.0 to 3.11.3 writes a member of an enumeration as getattr(class, name), other versions as class(value). The
# names in the arguments must be permitted as well, and nothing is called.
_GETATTR = PickledName("builtins", "getattr")
_ENCODINGS = [
    pickled
    for member in _MEM_FORMAT_ENCODING
    for pickled in ((_ENCODING, (member.value,)), (_GETATTR, (_ENCODING, member.name)))
]
# The dtypes are listed by name, so that the name in a pickle is only looked up and never imported.
DTYPES: dict[PickledName, torch.dtype] = {
    PickledName("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
# Every name that may appear. The names that are not used below belong to the attributes that are left out: the pickle
# is read completely, so they have to be permitted although nothing is built from them.
ALLOWED: frozenset[PickledName] = frozenset(
    {
        *_INDEX, _TENSOR, _BYTES, _CHUNK, _PROPERTIES, _KEY, _STORAGE_INFO, _SIZE, _LAYOUT, _ENCODING, _GETATTR,
        *DTYPES,
        PickledName(_METADATA, "StorageMeta"), PickledName("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
        PickledName(_MCORE, "MCoreSavePlan"), PickledName("collections", "OrderedDict"),
        *(PickledName("torch.distributed.checkpoint.planner", name)
          for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData", "BytesIOWriteData")),
        *(PickledName(module, name) for module in ("pathlib", "pathlib._local")
          for name in ("Path", "PosixPath", "PurePosixPath")),
    }
)  # fmt: skip
# Far above what any checkpoint contains; the sum of an offset and a size still fits into a signed 64-bit number.
_MAX_DIMENSIONS, _MAX_NUMBER = 64, 1 << 62


def read_checkpoint_index(folder: Path) -> Metadata:
    """Read the index of a distributed checkpoint; it is built from checked values only.

    Args:
        folder: checkpoint directory that contains `.metadata`.

    Returns:
        New index. The dtype is the only tensor property that is taken from the file.

    Raises:
        CheckpointError: `.metadata` is missing, unreadable or damaged, or contains anything other than an index.
    """
    path = folder / FILE_NAME
    try:
        with open(path, "rb", opener=regular_file_opener) as file:
            # The size is that of the open file, because the path could be replaced between a check and the read.
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
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete, use another one") from None
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error or 'out of memory'}); use another checkpoint") from error


def _index(described: Any) -> Metadata:
    """Build the index from the description of a Metadata or MCoreMetadata object."""
    if type(described) is not PickledObject or described.kind not in _INDEX:
        raise PickleError("it is not the index of a checkpoint")
    known = ("planner_data", "storage_meta", "version", "all_local_plans", "mcore_data")
    fields = _fields(described, described.kind, ("state_dict_metadata", "storage_data"), known)
    entries, locations = fields["state_dict_metadata"], fields["storage_data"]
    if type(entries) is not dict or type(locations) is not dict:
        raise PickleError("its tensors or their storage locations are not a dict")
    version = fields.get("version")
    index = Metadata(
        state_dict_metadata={_text(name): _entry(name, entry) for name, entry in entries.items()},
        storage_data={_key(key): _location(location) for key, location in locations.items()},
        storage_meta=StorageMeta(),
    )
    # The keys of the pickle are distinct objects and can still become equal here; the later entry would win silently.
    if len(index.storage_data) != len(locations):
        raise PickleError("it has two storage locations for the same part of a tensor")
    if hasattr(index, "version"):  # a field since torch 2.9
        index.version = None if version is None else _text(version)
    return index


def _fields(
    described: Any, kind: PickledName, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the attributes of an object of class `kind`: all required ones, and no unknown ones."""
    if type(described) is not PickledObject or described.kind != kind or described.arguments:
        raise PickleError(f"it has another value where a {kind.name} is expected")
    state: Any = described.state if described.state is not None else {}
    if type(state) is not dict:
        raise PickleError(f"it has a {kind.name} whose attributes are not a dict")
    for name in required:
        if name not in state:
            raise PickleError(f"it has a {kind.name} without {name}")
    # Skipped if there are no other attributes: an index has one object for each chunk, which can be millions.
    if len(state) != len(required):
        for name in state:
            if name not in required and name not in optional:
                raise PickleError(f"it has a {kind.name} with the unknown attribute {str(name)[:60]!a}")
    return state


def _entry(name: str, entry: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    """Build one entry of state_dict_metadata."""
    if type(entry) is PickledObject and entry.kind == _BYTES:
        _fields(entry, _BYTES, ())
        return BytesStorageMetadata()
    fields = _fields(entry, _TENSOR, ("properties", "size", "chunks"))
    size, chunks = _size(fields["size"]), fields["chunks"]
    if type(chunks) is not list:
        raise PickleError(f"it has no list of chunks for {name[:100]!a}")
    return TensorStorageMetadata(_properties(fields["properties"]), size, [_chunk(chunk, size) for chunk in chunks])


def _properties(described: Any) -> TensorProperties:
    """Check the state (dtype, layout, requires_grad, memory format encoding, pin_memory) and keep the dtype."""
    known = type(described) is PickledObject and described.kind == _PROPERTIES and not described.arguments
    state: Any = described.state if known else None
    if type(state) is not tuple or len(state) != 5:
        raise PickleError("it has a tensor without properties")
    dtype, layout, requires_grad, encoding, pinned = state
    if type(dtype) is not PickledName or dtype not in DTYPES:
        raise PickleError("it has a tensor without a dtype")
    if type(layout) is not PickledObject or layout.kind != _LAYOUT or layout.arguments != ("torch.strided",):
        raise PickleError("it has a tensor that is not dense")
    if type(encoding) is not PickledObject or (encoding.kind, encoding.arguments) not in _ENCODINGS:
        raise PickleError("it has a tensor with an unknown memory format")
    if type(requires_grad) is not bool or type(pinned) is not bool:
        raise PickleError("it has a tensor with unknown properties")
    return TensorProperties(dtype=DTYPES[dtype])


def _chunk(described: Any, tensor_size: torch.Size) -> ChunkStorageMetadata:
    """Build the description of a chunk, which must lie within the tensor."""
    fields = _fields(described, _CHUNK, ("offsets", "sizes"))
    offsets, sizes = _size(fields["offsets"]), _size(fields["sizes"])
    if len(offsets) != len(tensor_size) or len(sizes) != len(tensor_size):
        raise PickleError("it has a chunk with another number of dimensions than its tensor")
    for offset, size, end in zip(offsets, sizes, tensor_size, strict=True):
        if offset + size > end:
            raise PickleError("it has a chunk that extends beyond its tensor")
    return ChunkStorageMetadata(offsets, sizes)


def _key(described: Any) -> MetadataIndex:
    """Build a key of storage_data: the name of a tensor and the offset of a chunk."""
    fields = _fields(described, _KEY, ("fqn",), ("offset", "index"))
    offset, position = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _text(fields["fqn"]),
        None if offset is None else _size(offset),
        None if position is None else _number(position),
    )


def _location(described: Any) -> _StorageInfo:
    """Build the storage location of a chunk: file in the checkpoint directory, offset and length in bytes."""
    fields = _fields(described, _STORAGE_INFO, ("relative_path", "offset", "length"), ("transform_descriptors",))
    name = _text(fields["relative_path"])
    # Only a plain file name: a crafted index must not make the program read files outside the checkpoint.
    if not name or name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise PickleError(f"it names a file outside the checkpoint directory for a tensor: {name[:100]!a}")
    if fields.get("transform_descriptors"):
        raise PickleError("it has compressed or otherwise transformed tensors, which are not supported")
    return _StorageInfo(name, _number(fields["offset"]), _number(fields["length"]))


def _size(described: Any) -> torch.Size:
    """Return a torch.Size, described as a call with one tuple of numbers."""
    if (
        type(described) is not PickledObject
        or described.kind != _SIZE
        or len(described.arguments) != 1
        or described.state is not None
    ):
        raise PickleError("it has another value where a size is expected")
    numbers = described.arguments[0]
    if type(numbers) is not tuple or len(numbers) > _MAX_DIMENSIONS:
        raise PickleError("it has a size that is not a tuple of numbers")
    for number in numbers:
        # `type` and not isinstance: True is an int for isinstance.
        if type(number) is not int or not 0 <= number < _MAX_NUMBER:
            raise PickleError("it has a size that is not a tuple of numbers")
    return torch.Size(numbers)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MAX_NUMBER:
        raise PickleError("it has another value where a number is expected")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise PickleError("it has another value where a name is expected")
    return value
