"""Hash of a base model, by which a checkpoint of an adapter names it.

    for each Hugging Face tensor, in the order of the names:   NAME DTYPE [SHAPE] SHA-256 of its bytes
    hash of the model:                                         SHA-256 of these lines

The hash is the same for a Hugging Face folder and for a checkpoint that was made from it in the same data type, because
neither the padding of the vocabulary nor a second copy of tied embeddings is part of it. A model that was converted to
another data type has another hash.

The ranks of a run share the tensors (`tensor_digests`). The result is cached for each machine by path, size,
modification time and inode of the files, as for packed files (indexed_dataset/hash_cache.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mindspeed_llm.adapters import BaseModel
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, is_hugging_face_folder
from mindspeed_llm.conversion.hugging_face_weights import HuggingFaceWeights
from mindspeed_llm.conversion.model_weights import PARAM_NAMES, is_checkpoint, latest_checkpoint, open_model
from mindspeed_llm.conversion.tensor_catalogue import CatalogueTensor, TensorCatalogue
from mindspeed_llm.conversion.tensor_mapping import split_parts
from mindspeed_llm.conversion.tensor_streams import as_bytes, read_ahead
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.atomic_write import atomic_file
from mindspeed_llm.storage.cache_directory import cache_directory_of_this_machine
from mindspeed_llm.storage.hashing import sha256_of, sha256_of_blocks
from mindspeed_llm.storage.json_dataclass import decode_dataclass
from mindspeed_llm.storage.safe_open import read_file_bytes


def tensor_digests(folder: Path, config: HuggingFaceConfig, rank: int = 0, ranks: int = 1) -> dict[str, str]:
    """Hash this rank's share of the tensors of a model; the ranks together hash each tensor once.

    Args:
        folder: Hugging Face folder, directory of checkpoints with a tracker, or a checkpoint (an iter_ directory).
        config: configuration of the model.
        rank: number of this rank, from 0.
        ranks: number of ranks.

    Returns:
        Hugging Face name → data type, shape and SHA-256, such as 'bf16 [32, 64] 9a…'.

    Raises:
        CheckpointError: the weights are missing, damaged or of another model.
        ConfigError: the checkpoint contains an adapter.
    """
    weights = open_model(folder, TensorCatalogue(config), once=ranks == 1)
    digests = {}
    shares = divide_tensors(TensorCatalogue(config).tensors, ranks)

    def parts(tensor: CatalogueTensor) -> list[torch.Tensor]:
        # The tensors of a Hugging Face folder need not be joined first.
        if isinstance(weights, HuggingFaceWeights):
            return [weights.read(name) for name, _ in tensor.parts]
        return split_parts(tensor, weights.full_tensor(tensor))

    for tensor, values in read_ahead(parts, shares[rank]):
        for (name, shape), value in zip(tensor.parts, values, strict=True):
            content = sha256_of_blocks((as_bytes(value),))  # type: ignore[arg-type]
            dtype = PARAM_NAMES.get(value.dtype, str(value.dtype).removeprefix("torch."))
            digests[name] = f"{dtype} {list(shape)} {content}"
    return digests


def divide_tensors(tensors: list[CatalogueTensor], ranks: int) -> list[list[CatalogueTensor]]:
    """Divide tensors among the ranks, so that all ranks have about the same number of elements.

    Args:
        tensors: all tensors.
        ranks: number of ranks.

    Returns:
        The tensors of each rank. The result depends on the arguments only.
    """
    shares: list[list[CatalogueTensor]] = [[] for _ in range(ranks)]
    sizes = [0] * ranks
    for tensor in sorted(tensors, key=lambda tensor: (-tensor.elements, tensor.name)):
        rank = sizes.index(min(sizes))
        shares[rank].append(tensor)
        sizes[rank] += tensor.elements
    return shares


def combine_digests(digests: Mapping[str, str]) -> BaseModel:
    """Combine the digests of all tensors into the hash of the model.

    Args:
        digests: from `tensor_digests`, of all ranks.

    Returns:
        Hash and data types of the model, without a path.
    """
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    dtypes = sorted({digest.partition(" ")[0] for digest in digests.values()})
    return BaseModel(sha256_of(lines.encode()), ",".join(dtypes))


def base_hash(folder: Path, config: HuggingFaceConfig) -> BaseModel:
    """Return the hash of a model, from the cache or computed in this process.

    Args:
        folder: see `tensor_digests`.
        config: configuration of the model.

    Raises:
        CheckpointError: the weights are missing, damaged or of another model.
        ConfigError: the checkpoint contains an adapter.
    """
    cached = cached_base_hash(folder)
    if cached is not None:
        return cached
    result = combine_digests(tensor_digests(folder, config))
    store_base_hash(folder, result)
    return result


@dataclass(frozen=True)
class _Entry:
    """Content of a cache file.

    Attributes:
        path: absolute path of the directory.
        files: hash of name, size, modification time and inode of each file.
        sha256: hash of the model.
        dtype: data types of the model.
    """

    path: str
    files: str
    sha256: str
    dtype: str


def cached_base_hash(folder: Path) -> BaseModel | None:
    """Return the hash of a model from the cache of this machine, without reading the weights.

    Args:
        folder: see `tensor_digests`.

    Returns:
        The result of `store_base_hash`, without a path; None if there is none for the files as they are now.
    """
    path, state = _entry_path(folder), _file_state(folder)
    if path is None or state is None:
        return None
    try:
        entry: _Entry = decode_dataclass(json.loads(read_file_bytes(path)), _Entry, "")
    except (OSError, ValueError, RecursionError):
        return None
    return BaseModel(entry.sha256, entry.dtype) if (entry.path, entry.files) == state else None


def store_base_hash(folder: Path, result: BaseModel) -> None:
    """Store the hash of a model in the cache of this machine. Nothing happens if that is not possible.

    Args:
        folder: see `tensor_digests`.
        result: hash of the model in that directory.
    """
    path, state = _entry_path(folder), _file_state(folder)
    if path is None or state is None:
        return
    content = json.dumps(asdict(_Entry(*state, result.sha256, result.dtype)), indent=1) + "\n"
    with contextlib.suppress(OSError), atomic_file(path, shared=True, durable=False) as file:
        file.write(content.encode("utf-8", "surrogateescape"))


def _entry_path(folder: Path) -> Path | None:
    """Return the cache file of a directory; None if there is no cache."""
    cache = cache_directory_of_this_machine("base_hash")
    return cache / f"{sha256_of(os.fsencode(folder.absolute()))[:32]}.json" if cache is not None else None


def _file_state(folder: Path) -> tuple[str, str] | None:
    """Return path of the weights, and a hash of name, size, modification time and inode of all their files.

    Returns:
        None if the files cannot be listed.
    """
    try:
        is_folder = is_hugging_face_folder(folder) and not is_checkpoint(folder)
        root = folder if is_folder else latest_checkpoint(folder)
        patterns = ("*.safetensors", "*.safetensors.index.json", "config.json") if is_folder else ("**/*",)
        paths = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
        status = [(str(path.relative_to(root)), path.stat()) for path in paths]
    except (OSError, CheckpointError):
        return None
    lines = [f"{name} {info.st_size} {info.st_mtime_ns} {info.st_ino}\n" for name, info in status]
    return str(root.absolute()), sha256_of("".join(lines).encode("utf-8", "surrogateescape"))
