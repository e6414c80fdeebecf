"""Tensors on disk, one safetensors file for each, so that a comparison holds only two of them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mindspeed_llm.storage.disk_errors import disk_errors

FLAG = "--scratch-dir"
_KEY = "tensor"


class TensorFolder:
    """Named tensors in a directory.

    Args:
        folder: a new directory, whose parent exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        with disk_errors(folder, FLAG):
            folder.mkdir()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor [...] of any shape and dtype.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        path = self._files.setdefault(name, self.folder / f"{len(self._files)}.safetensors")
        with disk_errors(path, FLAG):
            save_file({_KEY: tensor.detach().cpu().contiguous()}, path)

    def get(self, name: str) -> torch.Tensor:
        """Read the tensor [...] of this name."""
        return load_file(self._files[name])[_KEY]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with a prefix, without it, in the order in which they were written."""
        for name in self._files:
            if name.startswith(prefix):
                yield name.removeprefix(prefix)
