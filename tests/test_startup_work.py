"""Ranks wait without a limit for those that prepare the data, as long as these report progress."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mindspeed_llm.devices import rendezvous, startup_work
from mindspeed_llm.devices.rendezvous import RendezvousError
from mindspeed_llm.devices.startup_work import StartupWork, WorkCancelledError, WorkTiming
from mindspeed_llm.launcher_environment import LauncherEnvironment, read_launcher_environment

# Its silence is long enough for a thread that a busy machine does not run for a while; only some tests wait for it.
FAST = WorkTiming(refresh=0.05, silence=2, look=0.05, reading=1)
IMPATIENT = replace(FAST, silence=0.5)
LAUNCH = LauncherEnvironment(world_size=4, local_world_size=2, machines=2, by_torchrun=True)


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[StartupWork]]:
    """Create the objects of four ranks on two machines, each with its own connection to the store."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def create(per_machine: bool, timing: WorkTiming = FAST) -> list[StartupWork]:
        monkeypatch.setattr(startup_work, "_works", itertools.repeat(0))
        created = []
        for rank in range(4):
            client = torch.distributed.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
            launch = replace(LAUNCH, rank=rank, local_rank=rank % 2, machine=rank // 2)
            monkeypatch.setattr(startup_work, "read_launcher_environment", lambda launch=launch: launch)
            monkeypatch.setattr(rendezvous, "launcher_store", lambda client=client: client)
            created.append(StartupWork(per_machine, timing))
        return created

    return create


def run(works: list[StartupWork], plans: dict[int, Callable[[StartupWork], str | None]]) -> list[object]:
    """Run the plan of each working rank and let all ranks wait; return the results or errors."""
    results: list[object] = [None] * len(works)

    def take_part(rank: int) -> None:
        try:
            if rank in plans:
                result = None
                try:
                    result = plans[rank](works[rank])
                except WorkCancelledError:
                    results[rank] = "cancelled"
                works[rank].finish(result)
            results[rank] = works[rank].wait() or results[rank]
        except RendezvousError as error:
            results[rank] = error

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def working(result: str | None, seconds: float = 0) -> Callable[[StartupWork], str | None]:
    """Work that reports progress all the time."""

    def work(own: StartupWork) -> str | None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            own.report("reading")
            time.sleep(0.05)
        return result

    return work


def silent(own: StartupWork) -> str | None:
    own.report("35 % of the input")
    time.sleep(3 * IMPATIENT.silence)
    return "too late"


def test_ranks_wait_longer_than_the_silence(works: Callable[..., list[StartupWork]]) -> None:
    job = works(False)
    assert [one.works_here for one in job] == [True, False, False, False]
    assert run(job, {0: working("paths", 1.5 * FAST.silence)}) == ["paths"] * 4


def test_each_machine_has_its_result(works: Callable[..., list[StartupWork]]) -> None:
    job = works(True)
    assert [one.works_here for one in job] == [True, False, True, False]
    assert run(job, {0: working("a"), 2: working("b", 0.5)}) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_ends_the_work_of_the_others(works: Callable[..., list[StartupWork]], failing: int) -> None:
    """All ranks leave the wait at once; the next rendezvous has the error."""
    other = 2 - failing
    began = time.monotonic()
    results = run(works(True), {failing: working(None), other: working("late", 60)})
    assert results[other] == "cancelled" and results[failing] is None and time.monotonic() - began < 30


def test_silence_ends_all_ranks(works: Callable[..., list[StartupWork]]) -> None:
    results = run(works(True, IMPATIENT), {0: working("a"), 2: silent})
    for result in results:
        assert isinstance(result, RendezvousError)
        assert "has not reported for 0.5 s" in str(result) and "(its last report: 35 % of the input)" in str(result)


def test_silence_of_rank_0_ends_the_others(works: Callable[..., list[StartupWork]]) -> None:
    """One rank of each machine prints the message: on the machine of rank 0 another one than that."""
    results = run(works(False, IMPATIENT), {0: silent})
    assert results[0] == "too late", "rank 0 itself is ended by torchrun"
    errors = results[1:]
    assert all(isinstance(error, RendezvousError) and "its last report: 35 %" in str(error) for error in errors)
    assert [error.on_one_rank for error in errors] == [True, True, False]  # type: ignore[attr-defined]


def test_one_process_does_not_wait() -> None:
    work = StartupWork(False, FAST)
    work.report("reading")
    work.finish("paths")
    assert work.works_here and work.wait() == "paths"


def test_number_of_machines() -> None:
    assert read_launcher_environment({}).machines == 1
    assert read_launcher_environment({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}).machines == 4
    assert (
        read_launcher_environment({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "3"}).machines == 3
    )
