"""kernel.py, compiled by numba. Importing this module costs the import of numba, and the first call the compilation."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba

from mindspeed_llm.packing import kernel


def _compiled(function: Any, *helpers: Any) -> Callable[..., Any]:
    """`function` of kernel.py, compiled, calling the compiled `helpers` in place of the plain ones."""
    names = {**vars(kernel), **{helper.__name__: helper for helper in helpers}}
    bound = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    try:
        return numba.njit(bound, cache=True)
    except RuntimeError:  # no writable place for a cache: compile in every process
        return numba.njit(bound)


_largest_left = _compiled(kernel.largest_left)
_take = _compiled(kernel.take)
_closing_length = _compiled(kernel.closing_length, _largest_left)

fill_packs = _compiled(kernel.fill_packs, _largest_left, _take, _closing_length)
place_samples = _compiled(kernel.place_samples)
group_by_length = _compiled(kernel.group_by_length)
