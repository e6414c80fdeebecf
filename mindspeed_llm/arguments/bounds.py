"""Bounds of a number, as its field declares them in the metadata. dataclass_parser.py enforces them, for every program.

| key | the value must be |
|---|---|
| `minimum` | at least that |
| `above` | above that |
| `maximum` | at most that |
| `below` | below that |

Every number has a bound on each side. Where nothing else limits it, the upper one is what files, folder names and
tensors can hold, so that a value that passes is one that a run can use.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

# Rows of a vocabulary: token ids have 32 bits.
INT32 = 2**31 - 1
# Tokens of a pack: the bytes of a matrix of length by length have 63 bits, and boundaries of several packs 32.
LENGTH = 2**28
# Steps, samples and rows: folders of checkpoints and their tracker have at most 12 digits.
COUNT = 10**12 - 1
# torch refuses a scalar that a float32 tensor cannot hold.
FLOAT32 = 3.4e38
# torch's generators take a seed of 64 bits; ranks add to it.
SEED = 2**62
RANKS = 2**16

_KINDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def between(minimum: float, maximum: float) -> dict[str, Any]:
    """Return the metadata of a number from `minimum` to `maximum`, both included."""
    return {"minimum": minimum, "maximum": maximum}


def integer_bounds(group: type, name: str) -> tuple[int, int]:
    """Return the lowest and the highest value of a field that `between` bounds."""
    metadata = group.__dataclass_fields__[name].metadata  # type: ignore[attr-defined]
    return metadata["minimum"], metadata["maximum"]


def violated_bound(metadata: Mapping[str, Any], value: float) -> str | None:
    """Return the first bound that `value` breaks, such as 'at least 1'; None if it keeps all."""
    for key, (words, keeps) in _KINDS.items():
        if key in metadata and not keeps(value, metadata[key]):
            bound = metadata[key]
            return f"{words} {bound:,}" if isinstance(bound, int) else f"{words} {bound:g}"
    return None
