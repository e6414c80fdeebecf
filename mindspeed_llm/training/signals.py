"""A run that is asked to end: SIGTERM or SIGINT let it finish its step, save, and leave with status 3.

A scheduler sends SIGTERM to the launcher, which passes it on; a terminal sends SIGINT to every process, the launcher
sends it again. So repeats are ignored: a run that must end at once can be sent SIGKILL, and goes on from its last
checkpoint. torchrun waits TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (30 by default) before it does that itself; the
scripts raise it, since a large checkpoint takes longer.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from mindspeed_llm.errors import UserError

STOPPED_STATUS = 3
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(UserError):
    """The run was asked to end, and has saved where it stands."""

    status = STOPPED_STATUS
    word = "stopped"


class StopRequest:
    """Whether this rank has been asked to end. Ranks may be told at different times: the step lets them agree."""

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen inside the block; the handlers from before come back after it."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name
