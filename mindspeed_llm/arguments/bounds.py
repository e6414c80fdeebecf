"""Lower and upper bounds of numeric flags, declared in the metadata of their fields.

| key | the value must be |
|---|---|
| `minimum` | greater than or equal to the bound |
| `above` | greater than the bound |
| `maximum` | less than or equal to the bound |
| `below` | less than the bound |

dataclass_parser.py enforces them in every program. Every number has a lower and an upper bound. Where nothing else
limits a value, its upper bound is the largest value that files, directory names and tensors can hold, so that a run can
use every value that is accepted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

# Vocabulary size: token ids have 32 bits.
INT32 = 2**31 - 1
AUTO = -1  # value of a number whose flag is "auto"
# Tokens per pack. The byte size of a length × length matrix must fit into 63 bits, and the segment ends of a
# micro-batch of several packs into 32.
LENGTH = 2**28
# Steps, samples and rows: names of checkpoint directories and their tracker have at most 12 digits.
COUNT = 10**12 - 1
# torch refuses a scalar that a float32 tensor cannot hold.
FLOAT32 = 3.4e38
# torch's generators take a 64-bit seed, to which ranks add offsets.
SEED = 2**62
RANKS = 2**16

_KINDS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "maximum": ("at most", operator.le),
    "below": ("below", operator.lt),
}


def between(minimum: float, maximum: float) -> dict[str, Any]:
    """Return the metadata of a number between `minimum` and `maximum`, both inclusive."""
    return {"minimum": minimum, "maximum": maximum}


def integer_bounds(group: type, name: str) -> tuple[int, int]:
    """Return the minimum and the maximum of a field that is bounded by `between`.

    Args:
        group: dataclass that declares the field.
        name: name of the field.
    """
    metadata = group.__dataclass_fields__[name].metadata  # type: ignore[attr-defined]
    return metadata["minimum"], metadata["maximum"]


def violated_bound(metadata: Mapping[str, Any], value: float) -> str | None:
    """Return the first bound that `value` violates, such as 'at least 1'; None if it violates none.

    Args:
        metadata: metadata of the field.
        value: value to check.
    """
    for key, (phrase, satisfies) in _KINDS.items():
        if key in metadata and not satisfies(value, metadata[key]):
            bound = metadata[key]
            return f"{phrase} {bound:,}" if isinstance(bound, int) else f"{phrase} {bound:g}"
    return None
