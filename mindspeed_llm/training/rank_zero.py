"""Work that rank 0 alone does, and whose failure ends every rank with the same error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from mindspeed_llm.errors import UserError

T = TypeVar("T")


def run_on_rank_zero(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and give its result to all. Collective.

    Raises:
        UserError: the one that rank 0 met, on every rank.
    """
    outcome: list[T | UserError | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[0] = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    result = outcome[0]
    if isinstance(result, UserError):
        raise result
    return result  # type: ignore[return-value]
