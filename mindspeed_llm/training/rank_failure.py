"""Turn the loss of another rank into a short error, so that the original error of that rank stands out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from mindspeed_llm.errors import UserError

# Parts of the messages of gloo, NCCL and HCCL when the other end of a connection is gone. Not all of
# these errors are a DistBackendError or DistNetworkError, so the text is compared as well.
_LOST_CONNECTION = ("connection closed by peer", "connection reset", "gloo", "remote process exited", "nccl", "hccl",
          "connection was likely closed", "broken pipe")  # fmt: skip
# The rank that failed prints its error while it ends. The others wait this long, so that its error comes first.
PATIENCE_SECONDS = 2.0


class LostRankError(UserError):
    """Another rank has ended; the error of that rank gives the reason."""

    on_one_rank = True
    status = 1
    word = "ended"


@contextlib.contextmanager
def report_lost_ranks() -> Iterator[None]:
    """Raise LostRankError if a collective inside the block fails because another rank has ended.

    Raises:
        LostRankError: another rank has ended. Other errors pass unchanged.
    """
    try:
        yield
    except RuntimeError as error:
        kinds = (torch.distributed.DistBackendError, torch.distributed.DistNetworkError)
        message = " ".join(str(error).split())
        if torch.distributed.get_world_size() == 1:
            raise
        if not isinstance(error, kinds) and not any(part in message.lower() for part in _LOST_CONNECTION):
            raise
        time.sleep(PATIENCE_SECONDS)
        raise LostRankError(f"another rank is gone; see the error of that rank ({message[-160:]})") from None
