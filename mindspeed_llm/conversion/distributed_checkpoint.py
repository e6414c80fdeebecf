"""Write and read the distributed checkpoint of megatron-core without a process group, one tensor at a time.

The format is the distributed checkpoint of torch with a `.metadata` index. The tensors of all layers are stacked:
`decoder.layers.mlp.linear_fc2.weight` has the layers as its first dimension and one chunk for each layer, so that every
parallel layout can read the part that it needs.

    model     decoder.layers.0.mlp.linear_fc2.weight [H, F], decoder.layers.1.mlp.linear_fc2.weight [H, F], …
    key       decoder.layers.mlp.linear_fc2.weight [layers, H, F], chunks [1, H, F] at the offsets [layer, 0, 0]
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
from mindspeed_llm.conversion.tensor_mapping import shard
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
# Megatron-LM takes a checkpoint without this entry for one of its first formats, which orders query, key and value
# differently, and stops where it cannot reorder them (virtual pipeline stages).
MEGATRON_VERSION = {"checkpoint_version": 3.0}
LINEARS = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")


def checkpoint_key(tensor: CatalogueTensor) -> str:
    """Return the key of a tensor in the checkpoint, which has no layer number: all layers share one key."""
    if tensor.layer is None:
        return tensor.name
    inside = tensor.name.split(f"layers.{tensor.layer}.", 1)[1]
    for name, stored_name in STORED_NAMES.items():
        if inside.startswith(name):
            inside = stored_name + inside[len(name) :]
    return f"decoder.layers.{inside}"


class _UncachedFileSystem(FileSystem):
    """File system that does not leave pages of written files in the file cache."""

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with io.BufferedWriter(StreamedFile(Path(path))) as buffered:
            yield buffered


class _Writer(FileSystemWriter):
    """Writer of torch that does not store the local path of the checkpoint directory."""

    def __init__(self, folder: Path) -> None:
        # sync_files=False: StreamedFile flushes to the disk itself. per_thread_copy_ahead=0: with an accelerator the
        # copy-ahead loader of torch requests the tensors sorted by size, but they are read in the order of the plan.
        super().__init__(folder, single_file_per_rank=True, sync_files=False, thread_count=1, per_thread_copy_ahead=0)
        self.fs = _UncachedFileSystem()

    def storage_meta(self) -> StorageMeta:
        # That of torch contains the path, which means nothing on another machine.
        return StorageMeta()


class _Planner(SavePlanner):
    """Pass each tensor to the writer when it is requested, in the order in which the tensors are read.

    Only `resolve_data` and `finish_plan` are used; the plans are made by `write_distributed_checkpoint`.

    Args:
        values: (tensor, its value) in the order of the plans.
    """

    def __init__(self, values: Iterator[tuple[CatalogueTensor, torch.Tensor]]) -> None:
        self.values = values
        self.waiting: dict[MetadataIndex, CatalogueTensor] = {}

    def set_up_planner(self, *arguments: Any, **keywords: Any) -> None:
        """Do nothing; the abstract base class requires this method."""

    def create_local_plan(self) -> SavePlan:
        raise AssertionError("plans are made by write_distributed_checkpoint")

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        raise AssertionError("plans are made by write_distributed_checkpoint")

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            # The extra state of a linear layer: without TransformerEngine it is None in megatron-core.
            empty = io.BytesIO()
            torch.save([None], empty)
            return empty
        tensor, value = next(self.values)
        # A writer that requested the tensors in another order would store each value under the wrong key.
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
    """Write a checkpoint with one file per layer and one file per tensor outside the layers.

    Args:
        folder: existing, empty directory.
        catalogue: tensors to write.
        read: returns the full tensor of megatron-core in `dtype`, such as [output, input] for a linear layer.
        dtype: dtype of all tensors.
        done: progress callback; it receives the size of each written file in bytes.
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
        # megatron-core requests the extra state of every linear layer when it loads, although it is empty.
        for linear in LINEARS if layer is not None and not catalogue.is_adapter else ():
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
    # Both files belong to the format: a checkpoint without them does not load.
    torch.save(MEGATRON_VERSION, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(FORMAT), encoding="utf-8")
    writer.finish(Metadata(state_dict_metadata=entries), results)


def _files(catalogue: TensorCatalogue) -> Iterable[list[CatalogueTensor]]:
    """Return the tensors of each file: embedding, one file per layer, final norm, output layer."""
    outside = [[tensor] for tensor in catalogue.tensors if tensor.layer is None]
    layers: list[list[CatalogueTensor]] = [[] for _ in range(catalogue.layers)]
    for tensor in catalogue.tensors:
        if tensor.layer is not None:
            layers[tensor.layer].append(tensor)
    return [tensors for tensors in (*outside[:1], *layers, *outside[1:]) if tensors]


def _item(tensor: CatalogueTensor, layers: int, dtype: torch.dtype) -> WriteItem:
    """Return the entry of a plan for one tensor: a chunk [1, ...] of the stacked layers, or the full tensor."""
    offsets, sizes, full_size = [0] * len(tensor.shape), list(tensor.shape), list(tensor.shape)
    if tensor.layer is not None:
        offsets, sizes, full_size = [tensor.layer, *offsets], [1, *sizes], [layers, *full_size]
    return WriteItem(
        MetadataIndex(checkpoint_key(tensor), offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
            TensorProperties(dtype=dtype),
            torch.Size(full_size),
        ),
    )


def read_chunk(path: Path, key: str, location: _StorageInfo, chunk: ChunkStorageMetadata) -> torch.Tensor:
    """Read one chunk of a tensor from the section of a file that the index names.

    Args:
        path: file that contains the chunk.
        key: key of the tensor, for the error message.
        location: offset and length of the section in bytes.
        chunk: offsets and sizes of the chunk in the tensor.

    Returns:
        Tensor [*chunk.sizes]; its dtype is the stored one.

    Raises:
        CheckpointError: the file is missing, damaged or crafted, or the chunk has another shape than in the index.
    """
    try:
        section = TorchFile(path, location.offset, location.length)
        stored = section.tensor(section.content)
        if stored.shape != tuple(chunk.sizes):
            raise PickleError(f"it has the shape {list(stored.shape)}, but {list(chunk.sizes)} in the index")
        return stored.read()
    except (PickleError, OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: {key} cannot be read ({error}); restore the file, or use another checkpoint"
        ) from error


class DistributedWeights:
    """Weights of a distributed checkpoint, written on any parallel layout; other entries are ignored.

    Args:
        folder: an iter_ directory.
        catalogue: tensors of the model.

    Attributes:
        folder: the iter_ directory.
        dtypes: dtype of each tensor, by its name in megatron-core.

    Raises:
        CheckpointError: the index is missing or damaged, or tensors are missing, unexpected or of another shape.
    """

    def __init__(self, folder: Path, catalogue: TensorCatalogue) -> None:
        self.folder = folder
        metadata = read_checkpoint_index(folder)
        self._stored: dict[str, TensorStorageMetadata] = {
            key: value
            for key, value in metadata.state_dict_metadata.items()
            if isinstance(value, TensorStorageMetadata)
        }
        self._locations = metadata.storage_data or {}
        problems = []
        for tensor in catalogue.tensors:
            key = checkpoint_key(tensor)
            expected = tensor.shape if tensor.layer is None else (catalogue.layers, *tensor.shape)
            stored = tuple(self._stored[key].size) if key in self._stored else None
            # The vocabulary of a checkpoint may be padded, by a number of rows that depends on the parallel layout.
            padded = stored is not None and tensor.split == "vocabulary" and stored[0] >= expected[0]
            if stored is None:
                problems.append(f"missing: {key} {list(expected)}")
            elif stored != expected and not (padded and stored[1:] == expected[1:]):
                problems.append(
                    f"{key} has the shape {list(stored)}; {catalogue.required_by} requires {list(expected)}"
                )
        known = {checkpoint_key(tensor) for tensor in catalogue.tensors}
        for key, value in self._stored.items():
            # Entries with other prefixes, such as the optimizer state, are not converted.
            of_model = key.startswith(("decoder.", "embedding.", "output_layer."))
            if of_model and key not in known and "_extra_state" not in key:
                problems.append(f"not of this model: {key} {list(value.size)}")
        # All layers share a key, so that each problem of a layer's tensor appears once per layer.
        raise_problems(folder, list(dict.fromkeys(problems)))
        self.dtypes = {
            tensor.name: self._stored[checkpoint_key(tensor)].properties.dtype for tensor in catalogue.tensors
        }

    def full_tensor(self, tensor: CatalogueTensor) -> torch.Tensor:
        """Read a full tensor of megatron-core from its chunks.

        Args:
            tensor: one of the catalogue.

        Returns:
            Tensor [*tensor.shape], without the padding of the vocabulary.

        Raises:
            CheckpointError: a file is missing or damaged, or the chunks do not cover the tensor.
        """
        key = checkpoint_key(tensor)
        stored = self._stored[key]
        shape = tuple(stored.size) if tensor.layer is None else tuple(stored.size)[1:]
        single = self._single_chunk(tensor, stored.chunks, shape)
        # convert_ckpt.py writes one chunk per tensor. Its memory is used directly, without a second copy.
        if single is not None:
            value = self._chunk(key, single).view(shape)
            return value[: tensor.shape[0]] if tensor.split == "vocabulary" else value
        value = torch.empty(shape, dtype=stored.properties.dtype)
        covered = 0
        for chunk in stored.chunks:
            offsets, sizes = list(chunk.offsets), list(chunk.sizes)
            within: Any = ...
            if tensor.layer is not None:
                # The chunks of all layers have the same key; those of other layers are no part of this tensor.
                if not offsets[0] <= tensor.layer < offsets[0] + sizes[0]:
                    continue
                within = tensor.layer - offsets[0]
                offsets, sizes = offsets[1:], sizes[1:]
            region = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            value[region] = self._chunk(key, chunk)[within]
            covered += value[region].numel()
        # Uncovered elements would be uninitialized memory.
        if covered != value.numel():
            raise CheckpointError(f"{self.folder}: {key}: its chunks do not cover the tensor")
        return value[: tensor.shape[0]] if tensor.split == "vocabulary" else value

    def shard(self, tensor: CatalogueTensor, rank: int, ranks: int, vocabulary_rows: int) -> torch.Tensor:
        """Return the part of one tensor-parallel rank of any layout.

        Args:
            tensor: one of the catalogue.
            rank: tensor-parallel rank.
            ranks: tensor-parallel size.
            vocabulary_rows: rows of the padded vocabulary over all ranks.

        Returns:
            Tensor of the shape that `shard_shape` returns, such as [rows / ranks, columns].

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        return shard(tensor, self.full_tensor(tensor), rank, ranks, vocabulary_rows)

    @staticmethod
    def _single_chunk(
        tensor: CatalogueTensor, chunks: list[ChunkStorageMetadata], shape: tuple[int, ...]
    ) -> ChunkStorageMetadata | None:
        """Return the chunk that is exactly this tensor of one layer, or None."""
        offsets, sizes = [0] * len(shape), list(shape)
        if tensor.layer is not None:
            offsets, sizes = [tensor.layer, *offsets], [1, *sizes]
        matching = (chunk for chunk in chunks if list(chunk.offsets) == offsets and list(chunk.sizes) == sizes)
        return next(matching, None)

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> torch.Tensor:
        """Read a chunk from its file."""
        location = self._locations.get(MetadataIndex(key, chunk.offsets))
        if location is None:
            raise CheckpointError(
                f"{self.folder}: {key}: the index names no file for the chunk at {list(chunk.offsets)}"
            )
        path = self.folder / location.relative_path
        value = read_chunk(path, key, location, chunk)
        # A conversion reads each chunk once; its pages would only displace other files from the cache.
        drop_cached_pages(path)
        return value
