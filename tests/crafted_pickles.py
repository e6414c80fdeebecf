"""Indexes of checkpoints, honest ones and crafted ones, and what must be as it was after one is refused."""

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

# Everything that an index may name and that is a class or a function.
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


def honest_index(count: int = 3, seed: int = 0) -> Metadata:
    """An index of `count` tensors of random shapes and dtypes, each cut into chunks along its first dimension."""
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


def state(made: object, slots: dict[str, Any]) -> bytes:
    """Opcodes that set attributes on a class or function, by name, then forget it again."""
    module, name = made.__module__, made.__qualname__
    values = pickle.dumps((None, slots), 2)[2:-1]
    return f"c{module}\n{name}\n".encode() + values + b"b0"


def then(index: Metadata, *more: bytes) -> bytes:
    """The pickle of an index, followed by opcodes before its end. The memo of protocol 2 starts anew in them."""
    return pickle.dumps(index, 2)[:-1] + b"".join(more) + b"."


def attributes(one: object) -> dict[str, Any]:
    """Attributes of a class or function, but for the list that pickling an instance keeps in its class."""
    return {name: value for name, value in vars(one).items() if name != "__slotnames__"}


def snapshot() -> dict[str, Any]:
    """Attributes of everything that an index may name, and the modules that are imported."""
    return {
        **{f"{one.__module__}.{one.__qualname__}": attributes(one) for one in CLASSES},
        "modules": set(sys.modules),
        "is_relative_to": PosixPath.is_relative_to,
    }


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def saved(value: object, **options: Any) -> bytes:
    """What torch.save writes."""
    content = io.BytesIO()
    torch.save(value, content, **options)
    return content.getvalue()


def poison(folder: Path, key: str, trace: Path) -> None:
    """Rewrite a checkpoint so that its index is harmless when it is unpickled once, and runs code the second time.

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
    (folder / ".metadata").write_bytes(then(index, state(Metadata, slots)))
