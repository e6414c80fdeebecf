"""What a kernel makes of the boundaries, once for each micro-batch instead of once for each layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

Value = TypeVar("Value")

# Micro-batches that a rank may have in flight: an interleaved pipeline comes back to earlier ones in its backward pass.
_KEPT = 64


class BoundaryCache(Generic[Value]):
    """Remembers make(actual_seq_len, device) for the last boundary lists, recognised by identity.

    All layers of a micro-batch are handed the same tuple, so a look-up costs the same however many segments there
    are. The tuple is kept beside its value: its identity cannot be taken over by another one meanwhile.

    Args:
        make: what to remember.
    """

    def __init__(self, make: Callable[[Sequence[int], torch.device], Value]) -> None:
        self._make = make
        self._kept: OrderedDict[tuple[int, torch.device], tuple[Sequence[int], Value]] = OrderedDict()

    def __call__(self, actual_seq_len: Sequence[int], device: torch.device) -> Value:
        """The value for these boundaries, made now or before."""
        if not isinstance(actual_seq_len, tuple):  # a list may have changed since
            return self._make(actual_seq_len, device)
        key = (id(actual_seq_len), device)
        if key not in self._kept:
            self._kept[key] = (actual_seq_len, self._make(actual_seq_len, device))
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[key][1]
