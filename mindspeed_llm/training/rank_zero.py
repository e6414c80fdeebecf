"""Run work on rank 0 only, and raise its errors on every rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from mindspeed_llm.errors import UserError

T = TypeVar("T")


def run_on_rank_zero(work: Callable[[], T]) -> T:
    """Run a function on rank 0 and return its result on every rank. Collective.

    Args:
        work: function to run; its result must be picklable.

    Raises:
        UserError: the error that `work` raised on rank 0, on every rank.
    """
    outcome: list[T | UserError | None] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:
            # Broadcast instead of raised here: otherwise the other ranks would wait in the broadcast below.
            outcome[0] = error
    torch.distributed.broadcast_object_list(outcome, src=0)
    result = outcome[0]
    if isinstance(result, UserError):
        raise result
    return result  # type: ignore[return-value]
