"""Check all parts of a distributed checkpoint that torch and megatron-core would unpickle, and read each once.

By default they call pickle.load on `.metadata`, and torch.load on `common.pt` and, without weights_only, on entries of
bytes. Here `.metadata` and `common.pt` are read without unpickling (`conversion/pickle_reader.py`), and the checked
content is passed on (`checked_reader.py`). No file is read a second time, so a file that is replaced after the check
has no effect. This program neither writes nor requests entries of bytes, and its reader does not read them.
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
    """Checked content of a distributed checkpoint, except its tensors.

    Attributes:
        folder: directory of the checkpoint.
        index: names, shapes and locations of the tensors.
        common: the requested parts of common.pt, as plain values.
    """

    folder: Path
    index: Metadata
    common: dict[str, Any]


def check_checkpoint_safety(folder: Path, tensors: Collection[str], parts: Collection[str] = ()) -> CheckedCheckpoint:
    """Read and check everything in a distributed checkpoint that megatron-core would unpickle.

    Args:
        folder: directory of the checkpoint.
        tensors: keys that this run will load as tensors. Keys that the checkpoint does not have are ignored here.
        parts: keys of common.pt that this run needs. Keys that the file does not have are ignored.

    Returns:
        The checked index and common part, for `load_checked_checkpoint`.

    Raises:
        CheckpointError: A file is damaged, could run code, or has another format; the index names files outside the
            directory; or an entry is not a tensor, or not a complete one, where a tensor is expected.
    """
    _check_format(folder / FORMAT_FILE)
    index = read_checkpoint_index(folder)
    for key in tensors:
        entry = index.state_dict_metadata.get(key)
        if entry is None:
            # megatron-core reports missing keys when it loads.
            continue
        if not isinstance(entry, TensorStorageMetadata):
            raise CheckpointError(
                f"{folder}: refused, {key} is an entry of pickled bytes where a tensor is expected; {TRUST}"
            )
        # torch does not check this: it would silently not load the elements that no chunk contains.
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
            raise CheckpointError(f"{folder}: {key}: its chunks do not cover the tensor; use another checkpoint")
    _check_locations(folder, {location.relative_path for location in index.storage_data.values()})
    return CheckedCheckpoint(folder, index, _read_common(folder / COMMON_FILE, parts))


def _check_locations(folder: Path, names: Collection[str]) -> None:
    """Check that every file of the index is inside the directory. Missing files raise an error when they are read."""
    # Resolved paths, because a symbolic link inside the directory could lead out of it.
    inside = folder.resolve()
    for name in names:
        path = (inside / name).resolve()
        if not path.is_relative_to(inside):
            raise CheckpointError(f"{folder}: refused, its index points outside the folder ({name})")
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: not a file; {TRUST}")


def _check_format(path: Path) -> None:
    """Check that metadata.json names the supported format; megatron-core would choose its reader by this name."""
    try:
        with open(path, encoding="utf-8", opener=regular_file_opener) as file:
            raw = json.loads(file.read(_LARGEST_FORMAT))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({str(error)[:200]}); use another checkpoint") from error
    backend = raw.get("sharded_backend") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or backend != FORMAT["sharded_backend"] or not raw.keys() <= FORMAT.keys():
        raise CheckpointError(
            f"{path}: describes the format {str(backend)[:60]!a}, but only {FORMAT['sharded_backend']} is supported; "
            "save the checkpoint in that format"
        )


def _read_common(path: Path, parts: Collection[str]) -> dict[str, Any]:
    """Read the requested parts of common.pt as plain values; the others are not built."""
    try:
        file = TorchFile(path, also_allowed=OF_MEGATRON)
        if not isinstance(file.content, dict):
            raise PickleError("it does not contain a dict")
        return {key: file.value(file.content[key]) for key in parts if key in file.content}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; the checkpoint is incomplete, use another one") from None
    except ForbiddenNameError as error:
        raise CheckpointError(f"{path}: refused, loading it could run code: {error}; {TRUST}") from None
    except PickleError as error:
        raise CheckpointError(f"{path}: refused, it is damaged or crafted: {error}; {TRUST}") from None
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); use another checkpoint") from error
