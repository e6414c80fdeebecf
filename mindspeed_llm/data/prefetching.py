"""Prefetch the next global batch in a thread while the training step runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Start = TypeVar("Start")
Prepared = TypeVar("Prepared")


def prefetch(prepare: Callable[[Start], Prepared], starts: Iterable[Start]) -> Generator[Prepared, None, None]:
    """Yield `prepare(start)` for each start, in order, and prepare the next result in a thread meanwhile.

        for micro_batches in prefetch(lambda consumed: list(loader.micro_batches(consumed)), range(0, 64, 8)):
            step(micro_batches)

    Exactly one result is prepared ahead. An error of `prepare` is raised at the position of its result, so that the
    training step before it still completes. Closing the generator waits for the result that is being prepared.

    Args:
        prepare: function that prepares a result; it runs in another thread.
        starts: arguments of the calls.

    Yields:
        Result of each call.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-batch") as thread:
        pending: Future[Prepared] | None = None
        for start in starts:
            # Submitted before the pending result is yielded: the thread works while the caller uses that result.
            following = thread.submit(prepare, start)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
