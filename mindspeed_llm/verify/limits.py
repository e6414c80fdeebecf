"""Differences that are expected from rounding, for each type.

The limits without a float64 run are those of `ROUNDING`. With one, the error of transformers itself in the given type
is known, and a difference may be FACTOR times as large, but at least FLOOR_SHARE of the limit in `ROUNDING`: both sides
round, in different orders. docs/verify.md describes how the numbers were found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

# exact: values that are moved and never computed. setting: relative. logits: relative to the largest logit. hidden and
# gradient: norm of the difference relative to the norm. loss: nats. norm: relative.
Measure = Literal["exact", "setting", "logits", "hidden", "sample loss", "step loss", "norm", "gradient"]
FACTOR = 8.0

_FLOAT32: Mapping[Measure, float] = MappingProxyType(
    {
        "exact": 0.0,
        "setting": 1e-6,
        "logits": 5e-5,
        "hidden": 5e-5,
        "sample loss": 2e-4,
        "step loss": 5e-5,
        "norm": 1e-4,
        "gradient": 1e-3,
    }
)
_BFLOAT16: Mapping[Measure, float] = MappingProxyType(
    {
        "exact": 0.0,
        "setting": 1e-6,
        "logits": 5e-2,
        "hidden": 5e-2,
        "sample loss": 1e-1,
        "step loss": 2e-2,
        "norm": 5e-2,
        "gradient": 2e-1,
    }
)
ROUNDING: Mapping[str, Mapping[Measure, float]] = MappingProxyType({"fp32": _FLOAT32, "bf16": _BFLOAT16})
# Part of the limit that always remains: the error of transformers may be small by chance.
FLOOR_SHARE = 0.1


@dataclass(frozen=True)
class Limits:
    """Limits for one type.

    Attributes:
        precision: 'fp32' or 'bf16'.
        is_measured: whether transformers also ran in float64.
    """

    precision: str
    is_measured: bool

    def of(self, measure: Measure, own_error: float | None = None) -> float:
        """Return the limit of a difference.

        Args:
            measure: what is compared.
            own_error: the same difference between transformers in this type and in float64; None if it is not known.
        """
        limit = ROUNDING[self.precision][measure]
        if own_error is None or measure in ("exact", "setting"):
            return limit
        return max(FACTOR * own_error, FLOOR_SHARE * limit)
