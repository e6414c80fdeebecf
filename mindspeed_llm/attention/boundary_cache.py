"""Cache the inputs that a kernel derives from the boundaries: computed once per micro-batch, not once per layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")

# Number of micro-batches that a rank may have in flight: an interleaved pipeline returns to earlier micro-batches in
# its backward pass.
_CAPACITY = 64


class BoundaryCache(Generic[Value]):
    """Cache of make(actual_seq_len, device) for the last boundary tuples, compared by identity.

    All layers of a micro-batch receive the same tuple object. A lookup by identity takes the same time for any number
    of segments, whereas hashing or comparing the tuple would grow with it.

    Args:
        make: function of the boundaries and the device whose results are cached.
    """

    def __init__(self, make: Callable[[Sequence[int], torch.device], Value]) -> None:
        self._make = make
        # Each entry holds its tuple, so that Python cannot give the same id to another tuple.
        self._entries: OrderedDict[tuple[int, torch.device], tuple[Sequence[int], Value]] = OrderedDict()

    def __call__(self, actual_seq_len: Sequence[int], device: torch.device) -> Value:
        """Return the value for these boundaries, from the cache where possible.

        Args:
            actual_seq_len: cumulative ends of the segments. Only a tuple is cached.
            device: the device of the value.
        """
        if not isinstance(actual_seq_len, tuple):  # a list with the same identity may have other contents
            return self._make(actual_seq_len, device)
        key = (id(actual_seq_len), device)
        if key not in self._entries:
            self._entries[key] = (actual_seq_len, self._make(actual_seq_len, device))
            if len(self._entries) > _CAPACITY:
                self._entries.popitem(last=False)
        return self._entries[key][1]
