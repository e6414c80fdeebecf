"""End a program on SIGINT (Ctrl-C) or SIGTERM: by an exception, so that every block cleans up after itself.

    with interrupts():            SIGINT raises Interrupted in the main thread
        ...
        with hold_interrupts():   a change that must not stop half-way: the exception is raised at its end
            ...

Training handles these signals in its own way (training/signals.py).
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

SECONDS_UNTIL_RAISED_AGAIN = 0.05

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ends the program.

    Attributes:
        signal: the signal.
        status: exit status that shells give to a program that was ended by this signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)
        self.status = 128 + number


class _Receiver:
    """Receives the signals of this process.

    Attributes:
        received: the first signal; later ones have no effect, so that they do not interrupt the cleanup.
        holds: number of blocks of `hold_interrupts` that are being executed.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.holds = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            if not self.holds:
                raise Interrupted(number)

    def receive_again(self, *_: object) -> None:
        """Receive the first signal again, because its exception was discarded."""
        number, self.received = self.received, None
        if number is not None:
            self.receive(number, None)


_RECEIVER = _Receiver()


@contextlib.contextmanager
def interrupts() -> Iterator[None]:
    """Raise Interrupted in the block on the first SIGINT or SIGTERM. A signal that is ignored remains so."""
    _RECEIVER.received = None
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    changed = [number for number in SIGNALS if previous[number] != signal.SIG_IGN]
    for number in changed:
        signal.signal(number, _RECEIVER.receive)
    try:
        with raised_again(_RECEIVER.receive_again):
            yield
    finally:
        for number in changed:
            signal.signal(number, previous[number])


@contextlib.contextmanager
def raised_again(handler: Callable[..., None]) -> Iterator[None]:
    """Call a signal handler again if Python discards the KeyboardInterrupt that it raised in the block.

    Python prints "Exception ignored in …" and continues where a signal arrives in a finalizer, or in a function that is
    registered for forks, such as that of `logging`.

    Args:
        handler: the signal handler; it is called through SIGALRM.
    """
    report = sys.unraisablehook

    def discarded(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            report(unraisable)
            return
        # An exception from here would be discarded too.
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_UNTIL_RAISED_AGAIN)

    sys.unraisablehook = discarded
    try:
        yield
    finally:
        sys.unraisablehook = report


@contextlib.contextmanager
def hold_interrupts() -> Iterator[None]:
    """Delay Interrupted to the end of the block. Used in the main thread only."""
    before = _RECEIVER.received
    _RECEIVER.holds += 1
    try:
        yield
    finally:
        _RECEIVER.holds -= 1
        received = _RECEIVER.received
        if before is None and received is not None and not _RECEIVER.holds:
            raise Interrupted(received)
