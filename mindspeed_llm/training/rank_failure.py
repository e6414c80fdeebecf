"""A rank that dies takes the others with it: they end soon, and leave the first word to the error that began it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from mindspeed_llm.errors import UserError

# What gloo, NCCL and HCCL say when the other side of a connection is gone.
_SIGNS = ("connection closed by peer", "connection reset", "gloo", "remote process exited", "nccl", "hccl",
          "connection was likely closed", "broken pipe")  # fmt: skip
# The rank that failed prints its error while it ends; this one waits that long before it says anything.
PATIENCE_SECONDS = 2.0


class LostRankError(UserError):
    """Another rank is gone; what happened is in that rank's own error."""

    on_one_rank = True
    status = 1
    word = "ended"


@contextlib.contextmanager
def report_lost_ranks() -> Iterator[None]:
    """Turn the failure of a collective whose other side is gone into LostRankError."""
    try:
        yield
    except RuntimeError as error:
        kinds = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
        said = " ".join(str(error).split())
        if torch.distributed.get_world_size() == 1:
            raise
        if not isinstance(error, kinds) and not any(sign in said.lower() for sign in _SIGNS):
            raise
        time.sleep(PATIENCE_SECONDS)
        raise LostRankError(f"another rank is gone, its error is the one to look at ({said[-160:]})") from None
