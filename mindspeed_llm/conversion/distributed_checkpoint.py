"""megatron.core's distributed checkpoint, written and read without a process group, one tensor at a time.

The format is torch's distributed checkpoint with .metadata. Tensors of layers are stacked:
`decoder.layers.mlp.linear_fc2.weight` has the layers as its first dimension and one chunk for each, so that any layout
reads what it needs.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemWriter, Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from mindspeed_llm.conversion.checkpoint_index import read_checkpoint_index
from mindspeed_llm.conversion.hugging_face_weights import raise_problems
from mindspeed_llm.conversion.pickle_reader import PickleError
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_streams import read_ahead
from mindspeed_llm.conversion.torch_file_reader import TorchFile
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.uncached_file import StreamedFile, drop_cached_pages

# megatron-core stores each norm under the name of the linear layer that follows it, as TransformerEngine fuses them.
STORED_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
LINEARS = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")


def checkpoint_key(tensor: CatalogueTensor) -> str:
    """The key of a tensor in the checkpoint: a layer's number is an index of it, not a part of its name."""
    if tensor.layer is None:
        return tensor.name
    inside = tensor.name.split(f"layers.{tensor.layer}.", 1)[1]
    for own, stored in STORED_NAMES.items():
        if inside.startswith(own):
            inside = stored + inside[len(own) :]
    return f"decoder.layers.{inside}"


class _Streams(FileSystem):
    """Opens files to write as streams that leave the file cache alone."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with io.BufferedWriter(StreamedFile(Path(path))) as buffered:
            yield buffered


class _Writer(FileSystemWriter):
    """torch's writer, which otherwise notes the folder's path on this machine in the checkpoint."""

    def __init__(self, folder: Path) -> None:
        # Streams sync themselves. Nothing is copied ahead: where there is an accelerator, torch's loader that does so
        # asks for tensors by size and not in their order.
        super().__init__(folder, single_file_per_rank=True, sync_files=False, thread_count=1, per_thread_copy_ahead=0)
        self.fs = _Streams()

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()


class _Planner(SavePlanner):
    """Hands the writer each tensor when it asks for it, in the order in which they are read."""

    def __init__(self, values: Iterator[tuple[CatalogueTensor, torch.Tensor]]) -> None:
        self.values = values
        self.waiting: dict[MetadataIndex, CatalogueTensor] = {}

    def set_up_planner(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing to set up."""

    def create_local_plan(self) -> SavePlan:
        raise AssertionError("plans are made by write_distributed")

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        raise AssertionError("plans are made by write_distributed")

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            empty = io.BytesIO()
            torch.save([None], empty)
            return empty
        tensor, value = next(self.values)
        assert tensor is self.waiting.pop(write_item.index), tensor.name
        assert tuple(value.shape) == tensor.shape, tensor.name
        return value if tensor.layer is None else value[None]


def write_distributed_checkpoint(
    folder: Path,
    catalogue: TensorCatalogue,
    read: Callable[[CatalogueTensor], torch.Tensor],
    dtype: torch.dtype,
    done: Callable[[int], None],
) -> None:
    """Write a checkpoint: one file for the tensors of each layer, and for each tensor outside layers.

    Args:
        folder: an existing, empty folder.
        catalogue: what is written.
        read: gives a whole tensor of megatron-core, in `dtype`.
        dtype: of all tensors.
        done: called with the bytes of each file that is written.
    """
    order = [tensor for tensors in _files(catalogue) for tensor in tensors]
    planner = _Planner(read_ahead(read, order))
    entries: dict[str, Any] = {}
    plans = []
    for tensors in _files(catalogue):
        items = []
        for tensor in tensors:
            item = _item(tensor, catalogue.layers, dtype)
            planner.waiting[item.index] = tensor
            data = item.tensor_data
            assert data is not None
            stored = entries.setdefault(item.index.fqn, TensorStorageMetadata(data.properties, data.size, []))
            stored.chunks.append(data.chunk)
            items.append(item)
        layer = tensors[0].layer
        for linear in LINEARS if layer is not None else ():  # megatron-core asks for these, empty as they are
            key = f"decoder.layers.{linear}._extra_state/shard_{layer}_{catalogue.layers}"
            entries[key] = BytesStorageMetadata()
            items.append(WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO))
        plans.append(SavePlan(items))
    writer = _Writer(folder)
    writer.set_up_storage_writer(True)
    results = []
    for plan, tensors in zip(writer.prepare_global_plan(plans), _files(catalogue), strict=True):
        future = writer.write_data(plan, planner)
        future.wait()
        results.append(future.value())
        done(sum(tensor.elements for tensor in tensors) * dtype.itemsize)
    torch.save({}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")
    writer.finish(Metadata(state_dict_metadata=entries), results)


def _files(catalogue: TensorCatalogue) -> Iterable[list[CatalogueTensor]]:
    outside = [[tensor] for tensor in catalogue.tensors if tensor.layer is None]
    layers: list[list[CatalogueTensor]] = [[] for _ in range(catalogue.layers)]
    for tensor in catalogue.tensors:
        if tensor.layer is not None:
            layers[tensor.layer].append(tensor)
    return [*outside[:1], *layers, *outside[1:]]


def _item(tensor: CatalogueTensor, layers: int, dtype: torch.dtype) -> WriteItem:
    offsets, sizes, whole = [0] * len(tensor.shape), list(tensor.shape), list(tensor.shape)
    if tensor.layer is not None:
        offsets, sizes, whole = [tensor.layer, *offsets], [1, *sizes], [layers, *whole]
    return WriteItem(
        MetadataIndex(checkpoint_key(tensor), offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
            TensorProperties(dtype=dtype),
            torch.Size(whole),
        ),
    )


def read_chunk(path: Path, key: str, place: _StorageInfo, chunk: ChunkStorageMetadata) -> torch.Tensor:
    """One chunk of a tensor, from the stretch of a file that the index names.

    Raises:
        CheckpointError: it is not there, damaged, crafted, or has another shape than the index says.
    """
    try:
        stretch = TorchFile(path, place.offset, place.length)
        stored = stretch.tensor(stretch.content)
        if stored.shape != tuple(chunk.sizes):
            raise PickleError(f"it has the shape {list(stored.shape)}, the index says {list(chunk.sizes)}")
        return stored.read()
    except (PickleError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {key} cannot be read ({error}); restore the file, or use another checkpoint"
        ) from error


class DistributedWeights:
    """The weights of a distributed checkpoint, whichever layout wrote it; other contents are passed over.

    Raises:
        CheckpointError: the folder's description is missing or damaged, or tensors are missing or misshapen.
    """

    def __init__(self, folder: Path, catalogue: TensorCatalogue) -> None:
        self.folder = folder
        metadata = read_checkpoint_index(folder)
        self._stored: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self._places = metadata.storage_data or {}
        problems = []
        for tensor in catalogue.tensors:
            key = checkpoint_key(tensor)
            wanted = tensor.shape if tensor.layer is None else (catalogue.layers, *tensor.shape)
            found = tuple(self._stored[key].size) if key in self._stored else None
            longer = found is not None and tensor.split == "vocabulary" and found[0] >= wanted[0]
            if found is None:
                problems.append(f"missing: {key} {list(wanted)}")
            elif found != wanted and not (longer and found[1:] == wanted[1:]):
                problems.append(f"{key} has the shape {list(found)}; config.json means {list(wanted)}")
        known = {checkpoint_key(tensor) for tensor in catalogue.tensors}
        for key, value in self._stored.items():
            of_model = key.startswith(("decoder.", "embedding.", "output_layer."))
            if of_model and key not in known and "_extra_state" not in key:
                problems.append(f"not of this model: {key} {list(value.size)}")
        raise_problems(folder, list(dict.fromkeys(problems)))
        self.dtypes = {
            tensor.name: self._stored[checkpoint_key(tensor)].properties.dtype for tensor in catalogue.tensors
        }

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """A whole tensor of megatron-core, without the vocabulary's padding; put together from its chunks."""
        key = checkpoint_key(tensor)
        stored = self._stored[key]
        rest = tuple(stored.size) if tensor.layer is None else tuple(stored.size)[1:]
        alone = self._alone(tensor, stored.chunks, rest)
        if alone is not None:  # as convert_ckpt.py writes them: no second copy
            value = self._chunk(key, alone).view(rest)
            return value[: tensor.shape[0]] if tensor.split == "vocabulary" else value
        value = torch.empty(rest, dtype=stored.properties.dtype)
        covered = 0
        for chunk in stored.chunks:
            offsets, sizes = list(chunk.offsets), list(chunk.sizes)
            within: Any = ...
            if tensor.layer is not None:
                if not offsets[0] <= tensor.layer < offsets[0] + sizes[0]:
                    continue
                within = tensor.layer - offsets[0]
                offsets, sizes = offsets[1:], sizes[1:]
            place = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            value[place] = self._chunk(key, chunk)[within]
            covered += value[place].numel()
        if covered != value.numel():
            raise CheckpointError(f"{self.folder}: {key}: its chunks do not make up the whole tensor")
        return value[: tensor.shape[0]] if tensor.split == "vocabulary" else value

    @staticmethod
    def _alone(
        tensor: CatalogueTensor, chunks: list[ChunkStorageMetadata], shape: tuple[int, ...]
    ) -> ChunkStorageMetadata | None:
        """The chunk that is one whole tensor of one layer, if there is one."""
        offsets, sizes = [0] * len(shape), list(shape)
        if tensor.layer is not None:
            offsets, sizes = [tensor.layer, *offsets], [1, *sizes]
        fitting = (chunk for chunk in chunks if list(chunk.offsets) == offsets and list(chunk.sizes) == sizes)
        return next(fitting, None)

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        place = self._places.get(MetadataIndex(key, chunk.offsets))
        if place is None:
            raise CheckpointError(f"{self.folder}: {key}: no file of this folder holds the chunk {list(chunk.offsets)}")
        path = self.folder / place.relative_path
        value = read_chunk(path, key, place, chunk)
        drop_cached_pages(path)
        return value
