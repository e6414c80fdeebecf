"""A module in place of ray that runs each task in this process, when its result is fetched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class LateRay:
    """Stands in for the module ray: runs a task when its result is fetched, from copies made by pickle, as Ray does."""

    class exceptions:  # noqa: N801 - the name that ray has
        WorkerCrashedError = OutOfMemoryError = NodeDiedError = type("Died", (Exception,), {})

    def __init__(self) -> None:
        self.tasks = 0
        self.most_waiting = self.waiting = 0

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        import multiprocessing.reduction as copies

        def decorated(task: Any) -> Any:
            def submit(*arguments: Any) -> Callable[[], Any]:
                sent = [copies.ForkingPickler.loads(copies.ForkingPickler.dumps(one)) for one in arguments]
                self.tasks += 1
                self.waiting += 1
                self.most_waiting = max(self.most_waiting, self.waiting)
                return lambda: task(*sent)

            return type("Remote", (), {"remote": staticmethod(submit)})

        return decorated

    def get(self, result: Callable[[], Any]) -> Any:
        import multiprocessing.reduction as copies

        self.waiting -= 1
        return copies.ForkingPickler.loads(copies.ForkingPickler.dumps(result()))

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def shutdown(self) -> None:
        pass
