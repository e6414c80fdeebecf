"""Leases of folders: one process at a time, whatever becomes of the one before it. No torch here."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from captured_logs import captured_logs
from lease_program import HeldFolder

from mindspeed_llm.launcher_environment import launcher_jobs
from mindspeed_llm.lease import (
    FolderLease,
    HeldLeases,
    LauncherJob,
    LeaseError,
    LeaseHolder,
    LeaseLostError,
    LeaseTiming,
    current_holder,
)
from mindspeed_llm.lease.lease_holder import process_start_ticks

# Silence that no test waits for, and silence that is over soon.
PATIENT = LeaseTiming(beat=0.05, silence=60, silence_of_same_job=60, look=0.02)
SOON = LeaseTiming(beat=0.05, silence=0.5, silence_of_same_job=0.25, look=0.02)


def lease_of(folder: Path, timing: LeaseTiming = PATIENT, **changed: object) -> FolderLease:
    """A lease of this process, or of one that differs from it."""
    return FolderLease("--save", folder, dataclasses.replace(current_holder(), **changed), timing)


def taken(lease: FolderLease) -> list[str]:
    """Take it, and return the lines that it logs."""
    with captured_logs() as lines:
        lease.take()
    return lines


def test_a_free_folder_is_taken_at_once_and_left_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "save"
    lease = lease_of(folder)
    began = time.perf_counter()
    assert taken(lease) == []
    assert time.perf_counter() - began < 0.1, "a start is not slower for it"
    content = json.loads((folder / "lease.1.json").read_text())
    assert content["holder"]["process"] == os.getpid() and content["holder"]["host"]
    lease.check(thoroughly=True)
    lease.release()
    assert list(tmp_path.iterdir()) == [], "folders made for it go with it"


def test_the_thread_refreshes_and_the_end_releases(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = tmp_path / "lease.1.json"
    with pytest.raises(KeyError), HeldLeases(SOON) as leases:
        leases.take({"--save": tmp_path})
        first = path.read_bytes()
        time.sleep(4 * SOON.beat)
        later = path.read_bytes()
        assert first != later and len(first) == len(later)
        raise KeyError  # a run that ends with an error
    assert [one.name for one in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("before", ["nothing", "a dead holder", "a silent holder"])
def test_only_one_of_several_simultaneous_starts_gets_the_lease(tmp_path: Path, before: str) -> None:
    """Eight at the same moment, again and again; the others see it alive and are refused."""
    # On a busy machine a live holder may be silent for a second.
    timing = dataclasses.replace(PATIENT, silence=5 if before == "a silent holder" else 60)
    for turn in range(1 if before == "a silent holder" else 5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        gone = {"process": 2**22 + 1} if before == "a dead holder" else {"host": "elsewhere"}
        if before != "nothing":
            taken(lease_of(folder, **gone))
        gate, won, refused = threading.Barrier(8), [], []

        def start(folder: Path = folder, gate: threading.Barrier = gate, won: list = won, refused: list = refused):
            with HeldLeases(timing) as leases:
                gate.wait()
                try:
                    leases.take({"--save": folder})
                    won.append(leases)
                except LeaseError as error:
                    refused.append(str(error))
                gate.wait()
                if leases in won:
                    leases.check(thoroughly=True)

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(refused) == 7
        assert list(folder.iterdir()) == []


def test_a_live_holder_is_reported_with_a_fix(tmp_path: Path) -> None:
    with HeldFolder(tmp_path) as other:
        assert other.first_line == "held"
        with captured_logs() as lines, pytest.raises(LeaseError) as raised:
            lease_of(tmp_path).take()
        named = f"lease_program.py, process {other.process.pid} on {current_holder().host}, since 20"
        assert f"--save {tmp_path}: another run is writing there: {named}" in str(raised.value)
        assert "give another --save" in str(raised.value)
        assert len(lines) == 1 and "taking over after 60 s without a refresh" in lines[0]
        assert other.ask() == "held" and other.end() == 0
    assert taken(lease_of(tmp_path)) == []


def test_a_holder_that_was_killed_here_is_replaced_at_once(tmp_path: Path) -> None:
    with HeldFolder(tmp_path) as other:
        os.kill(other.process.pid, signal.SIGKILL)
        while process_start_ticks(other.process.pid) is not None:
            time.sleep(0.01)
        [line] = taken(lease_of(tmp_path))  # nobody has waited for it yet: it is a zombie
        assert line.endswith("which has ended") and f"process {other.process.pid} " in line
        assert [path.name for path in tmp_path.iterdir()] == ["lease.2.json"]


def test_a_reused_process_id_is_detected(tmp_path: Path) -> None:
    own = current_holder()
    assert own.process_start is not None
    assert dataclasses.replace(own, process_start=own.process_start - 1).is_gone(own)
    assert not own.is_gone(own)


@pytest.mark.parametrize("field", ["host", "boot", "process_space"])
def test_a_holder_on_another_machine_expires_only_after_silence(tmp_path: Path, field: str) -> None:
    """Its process ids are not this machine's, whatever runs under that number here."""
    taken(lease_of(tmp_path, process=2**22 + 1, **{field: "another"}))
    began = time.monotonic()
    lines = taken(lease_of(tmp_path, SOON))
    assert time.monotonic() - began >= SOON.silence
    assert len(lines) == 2, lines
    assert "waiting to see whether it is alive" in lines[0] and lines[1].endswith(
        "which did not refresh its lease for 0.5 s"
    )


def test_a_suspended_holder_loses_the_lease_and_detects_it(tmp_path: Path) -> None:
    with HeldFolder(tmp_path) as other:
        os.kill(other.process.pid, signal.SIGSTOP)
        mine = lease_of(tmp_path, SOON)
        assert "did not refresh its lease for" in taken(mine)[-1]
        os.kill(other.process.pid, signal.SIGCONT)
        said = other.ask()
        assert (
            said.startswith(f"--save {tmp_path}: this run has lost its lease (it is now held by ") and "refresh" in said
        )
        assert other.end() == 0
        mine.check(thoroughly=True)  # its release has not touched ours
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_a_removed_lease_is_lost(tmp_path: Path) -> None:
    lease = lease_of(tmp_path)
    taken(lease)
    (tmp_path / "lease.1.json").unlink()
    lease.check()  # a moment after a refresh nothing is read
    with pytest.raises(LeaseLostError, match="its lease file is gone"):
        lease.check(thoroughly=True)
    with pytest.raises(LeaseLostError):
        lease.check()
    lease.release()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"token": 3, "holder": {"host": "x"}}', b"\xff\xfe", 9**6 * b"["])
def test_a_lease_that_cannot_be_read_is_waited_for(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease.7.json").write_bytes(content)
    lines = taken(lease_of(tmp_path, dataclasses.replace(SOON, silence=0.1)))
    assert "another process" in lines[0] and len(lines) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lease.8.json"]


FIRST = {"TORCHELASTIC_RUN_ID": "tune", "TORCHELASTIC_RESTART_COUNT": "0", "SLURM_JOB_ID": "77"}


@pytest.mark.parametrize(
    ("change", "launches", "earlier", "same"),
    [
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, (None, None), True, True),
        ({"SLURM_RESTART_COUNT": "1"}, (None, None), True, True),
        ({}, (None, None), False, True),
        ({"SLURM_JOB_ID": "78"}, (None, None), False, True),
        ({"SLURM_JOB_ID": "78", "TORCHELASTIC_RUN_ID": "other"}, (None, None), False, False),
        # torchrun's own store tells: one launch, or two that were given one id.
        ({"SLURM_JOB_ID": "78", "TORCHELASTIC_RUN_ID": "none"}, ("a", "a"), True, False),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, ("a", "b"), False, True),
    ],
)
def test_earlier_attempts_of_a_job_are_recognized(
    change: dict[str, str], launches: tuple[str | None, str | None], earlier: bool, same: bool
) -> None:
    holder = dataclasses.replace(current_holder(launches[0]), jobs=launcher_jobs(FIRST))
    own = dataclasses.replace(current_holder(launches[1]), jobs=launcher_jobs(FIRST | change))
    assert (holder.is_earlier_attempt(own), holder.is_of_same_job(own)) == (earlier, same)


def test_job_identifiers_of_launchers() -> None:
    assert launcher_jobs({}) == {} and launcher_jobs({"TORCHELASTIC_RUN_ID": "none"}) == {}, "torchrun's id of any job"
    assert launcher_jobs(FIRST) == {"torchrun": LauncherJob("tune", 0), "Slurm": LauncherJob("77", 0)}
    assert launcher_jobs({"MA_VJ_NAME": "job-a", "SLURM_RESTART_COUNT": "x"}) == {"Volcano": LauncherJob("job-a", 0)}


@pytest.mark.parametrize(("attempt", "lines"), [(1, 1), (0, 2)])
def test_a_restart_of_the_job_takes_over_at_once(tmp_path: Path, attempt: int, lines: int) -> None:
    """Without a count of restarts the holder may be alive, so it is watched, for less time than a stranger."""
    taken(lease_of(tmp_path, host="elsewhere", jobs={"Slurm": LauncherJob("77", 0)}))
    own = lease_of(tmp_path, dataclasses.replace(SOON, silence=60), jobs={"Slurm": LauncherJob("77", attempt)})
    assert len(taken(own)) == lines


def test_a_successor_of_a_lease_that_was_released_meanwhile_gives_way(tmp_path: Path) -> None:
    """A saw lease 1 dead; before A creates lease 2, lease 1 is released and B has taken the folder anew."""
    from mindspeed_llm.lease import folder_lease as module

    taken(lease_of(tmp_path, process=2**22 + 1))
    found = module._newest(tmp_path)
    (tmp_path / "lease.1.json").unlink()
    new = lease_of(tmp_path)
    taken(new)
    late = lease_of(tmp_path)
    assert late._create(2, found) is False
    new.check(thoroughly=True)
    assert [path.name for path in tmp_path.iterdir()] == ["lease.1.json"]


def test_temporary_storage_failures_do_not_lose_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = lease_of(tmp_path)
    taken(lease)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        lease.beat()
        lease.check(thoroughly=True)
    lease.beat()
    lease.check(thoroughly=True)
    assert '"beat": "0000000001"' in (tmp_path / "lease.1.json").read_text()


def test_description_of_a_holder() -> None:
    holder = LeaseHolder("h\x1b[2J\n", 1, None, None, None, "now", "p", {"Slurm": LauncherJob("7", 2)})
    assert str(holder) == "p, process 1 on h?[2J?, Slurm job 7, attempt 2, since now", "no codes for the terminal"
