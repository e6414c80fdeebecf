"""Runs and conversions that meet in one folder: one at a time, the other is refused or ends before it writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lease_program import HeldFolder
from tiny_runs import pretrain, train_records, write_files

from mindspeed_llm.devices import apply_patches
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.lease import LeaseError, LeaseLostError, LeaseTiming, current_holder, held_leases

apply_patches("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this process look often; what waits for silence waits long."""
    monkeypatch.setattr(held_leases, "TIMING", LeaseTiming(beat=0.05, look=0.05))


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("flag", ["--save", "--run-dir"])
def test_a_folder_that_another_run_writes_to_is_refused(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with HeldFolder(tmp_path / "shared") as other:
        before = files_of(tmp_path)
        words = ("--data-path", data, flag, str(tmp_path / "shared"))
        assert run_program(lambda: pretrain(monkeypatch, *words), "pretrain_gpt.py") == 2
        said = capsys.readouterr().err
        assert f"pretrain_gpt.py: error: {flag} {tmp_path / 'shared'}: another run is writing there: " in said
        assert f"process {other.process.pid} on {socket.gethostname()}" in said and f"give another {flag}" in said
        assert files_of(tmp_path) == before and other.ask() == "held"


def test_a_dry_run_takes_no_lease(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mindspeed_llm.dry_run as planning

    monkeypatch.setattr(planning, "build_job_plan", lambda arguments: None)
    monkeypatch.setattr(planning, "print_plan", lambda plan: None)
    with HeldFolder(tmp_path):
        pretrain(monkeypatch, "--data-path", data, "--save", str(tmp_path), "--dry-run")


def test_a_folder_inside_save_needs_no_lease_of_its_own(tmp_path: Path) -> None:
    from tiny import tiny_arguments

    from mindspeed_llm.training.output_dirs import leased_dirs

    def folders(words: str) -> list[str]:
        arguments = tiny_arguments(words)
        return list(leased_dirs(arguments.checkpoint, arguments.logging))

    assert folders("") == []
    assert folders(f"--save {tmp_path}") == folders(f"--save {tmp_path} --run-dir {tmp_path}/a/../run") == ["--save"]
    assert folders(f"--save {tmp_path} --run-dir {tmp_path}/../run") == ["--save", "--run-dir"]
    assert folders(f"--run-dir {tmp_path}") == ["--run-dir"]


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, work: Callable[[], None]) -> None:
    """Do something before a step of the next run."""
    import mindspeed_llm.training.trainer as trainer

    real, steps = trainer.train_step, []

    def step(*arguments: object, **named: object) -> object:
        steps.append(True)
        if len(steps) == number:
            work()
        return real(*arguments, **named)

    monkeypatch.setattr(trainer, "train_step", step)


@pytest.mark.parametrize(
    ("beat", "extra", "figures"), [(60, (), 2), (60, ("--async-save",), 2), (0.02, (), 1)], ids=str
)
def test_a_run_that_has_lost_its_folder_writes_nothing_more(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beat: float, extra: tuple[str, ...], figures: int
) -> None:
    """Suspended for minutes, say, while another took over. At the latest before the next save, or before one that was
    begun is made the newest, it ends with an error; where the thread has found out by then, not one more figure is
    written."""
    monkeypatch.setattr(held_leases, "TIMING", LeaseTiming(beat=beat))
    save, others = tmp_path / "save", []

    def take_over() -> None:
        (save / "lease.1.json").unlink()
        others.append(HeldFolder(save, beat=60))
        while beat < 1 and not run_leases[0]._lost:
            time.sleep(0.01)

    run_leases: list = []
    real = held_leases.FolderLease.take
    monkeypatch.setattr(held_leases.FolderLease, "take", lambda own: (run_leases.append(own), real(own)))
    before_step(monkeypatch, 2, take_over)
    words = (
        "--data-path",
        data,
        "--save",
        str(save),
        "--save-interval",
        "1" if extra else "2",
        "--eval-iters",
        "0",
        *extra,
    )
    with pytest.raises(LeaseLostError, match=r"has lost its lease \(it is now held by lease_program.py, process"):
        pretrain(monkeypatch, *words)
    with others[0] as other:
        assert [one.name for one in save.glob("iter_*") if not one.suffix] == []
        assert list(train_records(save / "run")) == list(range(1, figures + 1))
        assert other.ask() == "held"


def test_the_lease_is_released_after_a_signal_and_covers_the_export(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindspeed_llm.programs import pretrain as program

    save = tmp_path / "save"
    words = ("--data-path", data, "--save", str(save), "--eval-iters", "0", "--train-iters", "3")
    with monkeypatch.context() as stopping:
        before_step(stopping, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert run_program(lambda: pretrain(stopping, *words), "pretrain_gpt.py") == 3
    assert not list(save.glob("lease*"))
    drawn: list = []
    monkeypatch.setattr(program, "draw", lambda *_: drawn.extend(save.glob("lease*")))
    pretrain(monkeypatch, *words)
    assert [path.name for path in drawn] == ["lease.1.json"] and not list(save.glob("lease*"))


def test_a_conversion_does_not_write_into_the_folder_of_a_run(tmp_path: Path) -> None:
    from mindspeed_llm.conversion.model_writers import publish_checkpoint

    def write(folder: Path, done: Callable[[int], None]) -> None:
        assert list(tmp_path.glob("target/lease*"))
        (folder / "weights").write_text("")

    with HeldFolder(tmp_path / "target") as run, pytest.raises(LeaseError, match=r"--save-dir .*another run"):
        publish_checkpoint(tmp_path / "target", 1, lambda *_: pytest.fail(f"written beside {run}"))
    assert publish_checkpoint(tmp_path / "target", 1, write) == tmp_path / "target" / "iter_0000001"
    assert not list(tmp_path.glob("target/lease*"))


def test_all_attempts_of_a_torchrun_job_share_an_identifier(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tells them from another job of the same id; kept in torchrun's own store."""
    import torch

    from mindspeed_llm.devices import rendezvous

    assert rendezvous.launch_token() is None and current_holder().launch is None, "no torchrun here"
    words = []
    for _ in range(2):
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        for attempt in ("0", "1"):
            own = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": attempt}
            for name, value in (environment | own).items():
                monkeypatch.setenv(name, value)
            rendezvous.launcher_store.cache_clear()
            words.append(rendezvous.launch_token())
    rendezvous.launcher_store.cache_clear()
    assert words[0] == words[1] != words[2] == words[3] and json.dumps(words)
