"""Check everything in a distributed checkpoint that torch and megatron-core would unpickle, and read it once.

Left alone, they call pickle.load on `.metadata`, and torch.load on `common.pt` and, without weights_only, on entries of
bytes. Here `.metadata` and `common.pt` are read without unpickling (`conversion/pickle_reader.py`); what was checked
is handed on (`checked_reader.py`): no file is read a second time, so a file that changes meanwhile changes nothing.
This program neither writes nor asks for entries of bytes, and its reader reads none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from mindspeed_llm.conversion.checkpoint_index import TRUST, read_checkpoint_index
from mindspeed_llm.conversion.distributed_checkpoint import FORMAT
from mindspeed_llm.conversion.pickle_reader import ForbiddenNameError, PickleError
from mindspeed_llm.conversion.torch_file_reader import OF_MEGATRON, TorchFile
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.storage.safe_open import regular_file_opener

FORMAT_FILE, COMMON_FILE = "metadata.json", "common.pt"
_LARGEST_FORMAT = 1 << 20  # bytes


@dataclass(frozen=True)
class CheckedCheckpoint:
    """What a distributed checkpoint holds besides tensors, read and checked.

    Attributes:
        folder: of the checkpoint.
        index: which tensors there are, and where.
        common: the parts of common.pt that were asked for, as plain values.
    """

    folder: Path
    index: Metadata
    common: dict[str, Any]


def check_checkpoint_safety(folder: Path, tensors: Collection[str], parts: Collection[str] = ()) -> CheckedCheckpoint:
    """Read everything in a folder that would be unpickled, before megatron-core does.

    Args:
        folder: of a distributed checkpoint.
        tensors: keys that this run will read as tensors.
        parts: keys of common.pt that this run needs, where it has them.

    Raises:
        CheckpointError: something in it is damaged, could run code, or is no tensor where a tensor is expected.
    """
    _check_format(folder / FORMAT_FILE)
    index = read_checkpoint_index(folder)
    for key in tensors:
        entry = index.state_dict_metadata.get(key)
        if entry is None:
            continue
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(
                f"{folder}: refused, {key} is an entry of pickled bytes where a tensor is expected; {TRUST}"
            )
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise CheckpointError(
                f"{folder}: {key}: its chunks do not make up the whole tensor; use another checkpoint"
            )
    _check_places(folder, {place.relative_path for place in index.storage_data.values()})
    return CheckedCheckpoint(folder, index, _read_common(folder / COMMON_FILE, parts))


def _check_places(folder: Path, names: Collection[str]) -> None:
    """Every file of the index lies in the folder, also behind symbolic links. Missing ones are found when read."""
    inside = folder.resolve()
    for name in names:
        path = (inside / name).resolve()
        if not path.is_relative_to(inside):
            raise CheckpointError(f"{folder}: refused, its index points outside the folder ({name})")
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: not a file; {TRUST}")


def _check_format(path: Path) -> None:
    """metadata.json names the one format that is read here; megatron-core chooses its reader by it."""
    try:
        with open(path, encoding="utf-8", opener=regular_file_opener) as file:
            raw = json.loads(file.read(_LARGEST_FORMAT))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error)[:200]}); use another checkpoint") from error
    named = raw.get("sharded_backend") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or named != FORMAT["sharded_backend"] or not raw.keys() <= FORMAT.keys():
        raise CheckpointError(
            f"{path}: describes the format {str(named)[:60]!a}, and only {FORMAT['sharded_backend']} is read; save it "
            "again in that format"
        )


def _read_common(path: Path, parts: Collection[str]) -> dict[str, Any]:
    try:
        file = TorchFile(path, also_allowed=OF_MEGATRON)
        if not isinstance(file.content, dict):
            raise PickleError("it has no dict")
        return {key: file.value(file.content[key]) for key in parts if key in file.content}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is not whole, use another one") from None
    except ForbiddenNameError as error:
        raise CheckpointError(f"{path}: refused, loading it could run code: {error}; {TRUST}") from None
    except PickleError as error:
        raise CheckpointError(f"{path}: refused, it is damaged or crafted: {error}; {TRUST}") from None
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
