"""The next global batch is prepared while the step runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Start = TypeVar("Start")
Prepared = TypeVar("Prepared")


def prefetch(prepare: Callable[[Start], Prepared], starts: Iterable[Start]) -> Generator[Prepared, None, None]:
    """Yield prepare(start) for each start, in order; the next one is made in a thread while the caller works.

        for micro_batches in prefetch(lambda consumed: list(builder.micro_batches(consumed)), range(0, 64, 8)):
            step(micro_batches)

    Exactly one is made ahead. An error of `prepare` is raised where its result would have been yielded, so the step
    before it is still finished. Closing the iterator waits for the one being made.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-batch") as thread:
        pending: Future[Prepared] | None = None
        for start in starts:
            following = thread.submit(prepare, start)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
