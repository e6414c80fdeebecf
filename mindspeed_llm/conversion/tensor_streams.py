"""Tensors as bytes, and items that are read ahead of their use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Read = TypeVar("Read")


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, row after row."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[tuple[Item, Read]]:
    """Each item with what `read` gives for it, read while the one before is in use. Three are held at
    most, with the one that the caller still has.

    Raises:
        Exception: what `read` raises, in its turn.
    """
    with ThreadPoolExecutor(1) as worker:
        waiting: tuple[Item, Future[Read]] | None = None
        for item in items:
            following = item, worker.submit(read, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
