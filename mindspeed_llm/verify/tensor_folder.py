"""Tensors on disk, one file for each, so that a comparison holds only two of them in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch

from mindspeed_llm.conversion.tensor_streams import as_bytes
from mindspeed_llm.storage.disk_errors import disk_errors

FLAG = "--scratch-dir"


class TensorFolder:
    """Named tensors in a directory.

    Args:
        folder: a new directory, whose parent exists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self._tensors: dict[str, tuple[Path, torch.dtype, torch.Size]] = {}
        with disk_errors(folder, FLAG):
            folder.mkdir()

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor [...] of any shape and dtype.

        Raises:
            DataError: the disk is full or cannot be written.
        """
        path = self.folder / str(next(self._numbers))
        self._tensors[name] = (path, tensor.dtype, tensor.shape)
        # The bytes alone: a file format would first make a copy of the tensor in memory.
        with disk_errors(path, FLAG), path.open("wb") as file:
            file.write(as_bytes(tensor.detach().cpu()))

    def get(self, name: str) -> torch.Tensor:
        """Read the tensor [...] of this name; its pages are read when they are used."""
        path, dtype, shape = self._tensors[name]
        return torch.from_file(str(path), shared=False, size=shape.numel(), dtype=dtype).view(shape)

    def remove(self, prefix: str) -> None:
        """Remove the tensors whose names begin with a prefix."""
        for name in list(self.names(prefix)):
            self._tensors.pop(prefix + name)[0].unlink()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with a prefix, without it, in the order in which they were written."""
        for name in self._tensors:
            if name.startswith(prefix):
                yield name.removeprefix(prefix)
