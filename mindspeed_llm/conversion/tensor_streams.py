"""Convert tensors to bytes, and read the next tensor while the current one is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Read = TypeVar("Read")


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the bytes of a tensor [...] in row-major order, without a copy if it is contiguous."""
    # numpy has no bfloat16, hence the view as uint8.
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item]) -> Iterator[tuple[Item, Read]]:
    """Yield each item with its value; the next value is read in a thread while the caller uses the current one.

    At most three values exist at a time, including the one that the caller holds.

    Args:
        read: returns the value of an item.
        items: items in the order in which they are needed.

    Yields:
        (item, value) in the order of `items`.

    Raises:
        Exception: the exception of `read`, when the item would be yielded.
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
