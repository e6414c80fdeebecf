"""Valid and crafted checkpoint indexes, and the global state that a refused index must not change."""

from __future__ import annotations

import io
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata, planner
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

# All classes and functions that an index may name.
CLASSES = [
    *(getattr(metadata, name) for name in metadata.__all__),
    metadata._MEM_FORMAT_ENCODING,
    *(getattr(planner, name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
    filesystem._StorageInfo,
    filesystem._StoragePrefix,
    torch.Size,
    torch.serialization._get_layout,
    PosixPath,
]


def valid_index(count: int = 3, seed: int = 0) -> Metadata:
    """Create an index of `count` tensors of random shapes and dtypes, each split along its first dimension."""
    draw = random.Random(seed)
    entries: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for number in range(count):
        name = f"decoder.layers.mlp.linear_fc{number}.weight"
        rest = [draw.randrange(1, 70_000) for _ in range(draw.randrange(3))]
        rows = [draw.randrange(1, 9) for _ in range(draw.randrange(1, 4))]
        chunks, start = [], 0
        for row in rows:
            offset = torch.Size([start, *(0 for _ in rest)])
            chunks.append(ChunkStorageMetadata(offset, torch.Size([row, *rest])))
            places[MetadataIndex(name, offset, len(chunks) - 1)] = _StorageInfo(
                f"__{number}_0.distcp", draw.randrange(1 << 40), draw.randrange(1 << 34)
            )
            start += row
        dtype = draw.choice([torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn])
        entries[name] = TensorStorageMetadata(TensorProperties(dtype), torch.Size([sum(rows), *rest]), chunks)
    entries["decoder.layers.mlp.linear_fc1._extra_state/shard_0_4"] = BytesStorageMetadata()
    meta = StorageMeta(Path("/somewhere/else"), "save", "load", [])
    return Metadata(entries, None, places, meta)


def set_attributes(made: object, slots: dict[str, Any]) -> bytes:
    """Return opcodes that set attributes on a class or function and then remove it from the stack."""
    module, name = made.__module__, made.__qualname__
    values = pickle.dumps((None, slots), 2)[2:-1]
    return f"c{module}\n{name}\n".encode() + values + b"b0"


def with_opcodes(index: Metadata, *more: bytes) -> bytes:
    """Return the pickle of an index with additional opcodes before its end."""
    return pickle.dumps(index, 2)[:-1] + b"".join(more) + b"."


def attributes(one: object) -> dict[str, Any]:
    """Return the attributes of a class or function, except the list that pickle caches in a class."""
    return {name: value for name, value in vars(one).items() if name != "__slotnames__"}


def snapshot() -> dict[str, Any]:
    """Return the attributes of everything that an index may name, and the imported modules."""
    return {
        **{f"{one.__module__}.{one.__qualname__}": attributes(one) for one in CLASSES},
        "modules": set(sys.modules),
        "is_relative_to": PosixPath.is_relative_to,
    }


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def saved(value: object, **options: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def make_index_malicious(folder: Path, key: str, trace: Path) -> None:
    """Rewrite a checkpoint so that its index is harmless when unpickled once and executes code the second time.

    The end of `.metadata` sets attributes on Metadata itself: `__setstate__`, so that the next index that is unpickled
    gets no attributes of its own, and an index of the class, in which `key` is an entry of pickled bytes.
    """
    (folder / "files.json").unlink()
    index: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    place = next(place for at, place in index.storage_data.items() if at.fqn == key)
    content = saved(Touch(trace))
    with (folder / place.relative_path).open("ab") as file:
        evil = _StorageInfo(place.relative_path, file.tell(), len(content))
        file.write(content)
    slots = {
        "__setstate__": StorageMeta,  # an allowed name that takes any state and sets nothing
        "state_dict_metadata": {**index.state_dict_metadata, key: BytesStorageMetadata()},
        "storage_data": {**index.storage_data, MetadataIndex(key): evil},
    }
    (folder / ".metadata").write_bytes(with_opcodes(index, set_attributes(Metadata, slots)))
