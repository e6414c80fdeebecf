"""Handle SIGTERM and SIGINT: the run finishes its step, saves a checkpoint and ends with status 3.

A scheduler sends SIGTERM to the launcher, which passes it on. A terminal sends SIGINT to every process, and the
launcher sends it again. Repeated signals are therefore ignored. To end a run at once, send SIGKILL; it can then be
resumed from its last checkpoint. torchrun itself sends SIGKILL after TORCH_ELASTIC_SHUTDOWN_TIMEOUT seconds (default
30); the scripts raise this limit, because saving a large checkpoint takes longer.
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
    """A signal stopped the run. With --save, its checkpoint is saved."""

    status = STOPPED_STATUS
    word = "stopped"


class StopRequest:
    """Records whether this rank has received a signal to stop.

    Signals may reach the ranks at different times. The training step combines these records, so that all ranks stop
    after the same step.

    Attributes:
        signal: name of the first signal; None without one.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block, and restore the previous handlers after it."""
        previous = {number: signal.signal(number, self._record_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _record_signal(self, number: int, frame: FrameType | None) -> None:
        # Only records the signal: it may interrupt a collective, and this rank alone must not leave that.
        self.signal = self.signal or signal.Signals(number).name
