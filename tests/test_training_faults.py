"""What becomes of a run when something breaks: signals, numbers that are not finite, lost ranks, full disks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from time_limits import HANG_SECONDS
from tiny_runs import ROOT, RUN, pretrain, train_records, write_files

from mindspeed_llm.devices import apply_patches
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def patched() -> None:
    """Tests below reach into training, which imports megatron-core; its patches come first."""
    apply_patches("cpu")


LONG = ("--train-iters", "2000", "--eval-iters", "0", "--split", "100,0,0")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


def start_ranks(log: Path, *flags: str, ranks: int = 2, limit_kib: int | None = None) -> list[subprocess.Popen]:
    """What torchrun does: start the ranks with its environment. They share one log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "pretrain_gpt.py"), *RUN.split(), *flags]
    if limit_kib is not None:  # no file may grow beyond it: writing fails as on a full disk
        command = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$@"', "bash", *command]
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        common["TORCHELASTIC_RUN_ID"] = "test"
    with log.open("w") as file:
        return [
            subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]


def statuses(processes: list[subprocess.Popen]) -> list[int]:
    """Exit statuses, once all have ended; those that have not by then are killed and the test fails."""
    ends = time.monotonic() + HANG_SECONDS
    try:
        return [process.wait(max(0.1, ends - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_lines(metrics: Path, count: int, processes: list[subprocess.Popen], log: Path) -> None:
    """Until so many steps are in metrics.jsonl."""
    ends = time.monotonic() + HANG_SECONDS
    while time.monotonic() < ends:
        if metrics.exists() and metrics.read_text().count('"train"') >= count:
            return
        if any(process.poll() is not None for process in processes):
            break
        time.sleep(0.05)
    for process in processes:
        process.kill()
    pytest.fail(log.read_text()[-3000:])


def checkpoints(save: Path) -> list[str]:
    return sorted(path.name for path in save.glob("iter_*"))


def losses(run_dir: Path) -> dict[int, float]:
    return {iteration: record["loss"] for iteration, record in train_records(run_dir).items()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_is_asked_to_stop_by_either_signal(number):
    from mindspeed_llm.training.signals import StopRequest

    stopping, before = StopRequest(), signal.getsignal(number)
    with stopping.handle_signals():
        os.kill(os.getpid(), number)
        assert stopping.signal == number.name
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)], ids=lambda number: number.name
)
def test_a_signal_ends_the_run_after_its_step(data, tmp_path, number):
    """Sent to one rank, again and again, and to the processes that it has started for its saves, as schedulers do:
    both finish the step, save once more, and leave with status 3."""
    save, log = tmp_path / "checkpoint", tmp_path / "log"
    ranks = start_ranks(
        log, "--data-path", data, "--save", str(save), "--save-interval", "2", "--keep-last", "1", *LONG
    )
    wait_for_lines(save / "run" / "metrics.jsonl", 3, ranks, log)
    for _ in range(3):
        os.killpg(ranks[1].pid, number)
        time.sleep(0.02)
    assert statuses(ranks) == [3, 3], log.read_text()[-3000:]
    done = max(losses(save / "run"))
    assert checkpoints(save) == [f"iter_{done:07d}"]
    assert log.read_text().count("pretrain_gpt.py: stopped: ") == 1


def test_a_stopped_run_resumes_exactly(data, tmp_path, monkeypatch):
    """Stopped by a signal in the middle of an epoch, gone on with over its end: as if it had never been stopped."""
    import mindspeed_llm.training.trainer as trainer

    flags = ("--data-path", data, "--train-iters", "8", "--eval-iters", "0")
    pretrain(monkeypatch, *flags, "--run-dir", str(tmp_path / "straight"))
    real, asked = trainer.train_step, []

    def signalled(*arguments, **named):
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        asked.append(True)
        return real(*arguments, **named)

    monkeypatch.setattr(trainer, "train_step", signalled)
    save = tmp_path / "checkpoint"
    status = run_program(lambda: pretrain(monkeypatch, *flags, "--save", str(save)), "pretrain_gpt.py")
    assert status == 3
    assert checkpoints(save) in (["iter_0000003"], ["iter_0000004"])
    pretrain(monkeypatch, *flags, "--save", str(save))
    assert losses(save / "run") == losses(tmp_path / "straight")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers are put back"


def spoil(monkeypatch, steps: set[int], value: float) -> None:
    """Let the labels of the global batches at these iterations weigh `value`."""
    import mindspeed_llm.training.trainer as trainer

    real = trainer._micro_batches

    def spoilt(dataloader, start):
        batches = real(dataloader, start)
        if start // 4 + 1 not in steps:
            return batches
        return [dataclasses.replace(batch, loss_weights=batch.loss_weights * value) for batch in batches]

    monkeypatch.setattr(trainer, "_micro_batches", spoilt)


def test_a_loss_that_is_not_finite_stops_before_the_update(data, tmp_path, monkeypatch):
    save = tmp_path / "checkpoint"
    spoil(monkeypatch, {3}, float("inf"))
    flags = ("--data-path", data, "--save", str(save), "--save-interval", "1", "--eval-iters", "0")
    with pytest.raises(DataError, match=r"iteration 3: the loss is inf; training stopped before the update") as caught:
        pretrain(monkeypatch, *flags)
    assert str(caught.value).count(data) >= 4, "the four packs of the global batch are named"
    assert checkpoints(save) == ["iter_0000001", "iter_0000002"]
    [kept] = (save / "run" / "bad_steps").iterdir()
    with np.load(kept, allow_pickle=False) as arrays:
        assert arrays["0_tokens"].shape == (1, 64) and np.isinf(arrays["1_loss_weights"]).any()
        assert str(arrays["0_sample_ids"][0]).startswith(data)


def test_a_gradient_that_is_not_finite_stops_too(data, tmp_path, monkeypatch):
    """The loss is fine, its derivative is not: neither the weights nor Adam's state may see it."""
    import mindspeed_llm.training.train_step as step

    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(context, value):
            return value.clone()

        @staticmethod
        def backward(context, gradient):
            return gradient * float("nan")

    real = step._loss

    def spoilt(batch, keep_losses, output):
        return real(batch, keep_losses, (Spoilt.apply(output[0]), output[1]))

    monkeypatch.setattr(step, "_loss", spoilt)
    with pytest.raises(DataError, match="iteration 1: the gradient is not finite"):
        pretrain(monkeypatch, "--data-path", data, "--run-dir", str(tmp_path), "--eval-iters", "0")


def test_bad_steps_can_be_skipped(data, tmp_path, monkeypatch, capsys):
    """Skipped, a bad step changes nothing: the run goes on as if its batch had not been there."""
    flags = ("--data-path", data, "--eval-iters", "0", "--lr-decay-style", "constant")
    spoil(monkeypatch, {2, 5}, float("inf"))
    pretrain(monkeypatch, *flags, "--run-dir", str(tmp_path / "a"), "--skip-bad-steps", "2")
    assert "iteration 5: the loss is inf; skipped, bad step 2 of 2 allowed" in capsys.readouterr().err
    skipped = losses(tmp_path / "a")
    assert list(skipped) == [1, 3, 4, 6]
    with pytest.raises(DataError, match="iteration 5"):
        pretrain(monkeypatch, *flags, "--run-dir", str(tmp_path / "b"), "--skip-bad-steps", "1")
    monkeypatch.undo()
    spoil(monkeypatch, {2, 5}, 0.0)  # nothing to train in them, but the same batches before and after
    import mindspeed_llm.training.trainer as trainer

    real = trainer.train_step

    def without_denominator(job, batches, *rest, **named):
        if all(not batch.loss_weights.any() for batch in batches):
            batches = [dataclasses.replace(batch, loss_denominator=0) for batch in batches]
        return real(job, batches, *rest, **named)

    monkeypatch.setattr(trainer, "train_step", without_denominator)
    pretrain(monkeypatch, *flags, "--run-dir", str(tmp_path / "c"))
    untrained = losses(tmp_path / "c")
    assert {i: untrained[i] for i in skipped} == skipped


@pytest.mark.parametrize(
    "precision",
    [
        *(pytest.param(flags, marks=pytest.mark.long) for flags in ("", "--bf16")),
        "--use-distributed-optimizer",
        "--fp16 --initial-loss-scale 4096",
    ],
)
def test_a_run_stopped_before_its_first_update_resumes(data, tmp_path, monkeypatch, precision):
    """Its optimizer has no state yet: fp16 overflows for dozens of steps at first, or the first steps were skipped."""
    spoil(monkeypatch, {1, 2}, float("inf"))
    flags = ("--data-path", data, "--eval-iters", "0", "--skip-bad-steps", "2", "--lr-decay-iters", "6")
    flags = (*flags, *precision.split())
    pretrain(monkeypatch, *flags, "--run-dir", str(tmp_path / "straight"))
    save = tmp_path / "checkpoint"
    for iterations in ("1", "6"):
        pretrain(monkeypatch, *flags, "--save", str(save), "--train-iters", iterations)
    assert list(losses(save / "run")) == [3, 4, 5, 6]
    assert losses(save / "run") == losses(tmp_path / "straight")


def test_a_rank_that_dies_ends_the_others(data, tmp_path):
    log = tmp_path / "log"
    ranks = start_ranks(log, "--data-path", data, "--run-dir", str(tmp_path / "run"), *LONG)
    wait_for_lines(tmp_path / "run" / "metrics.jsonl", 3, ranks, log)
    ranks[1].kill()
    assert statuses(ranks) == [1, -signal.SIGKILL]
    assert "pretrain_gpt.py: ended: another rank is gone" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_the_first_error_is_shown_first(tmp_path):
    """A pack that one rank alone reads is damaged: that rank says so, the other that it lost a rank, after it."""
    files = write_files(tmp_path / "data")
    path = Path(f"{files}_packed_input_ids_document.bin")
    ids = np.memmap(path, dtype=np.int32, mode="r+")
    ids[6 * 32 + 3] = 10_000  # pack 6: the second half of the second global batch, the second rank's
    ids.flush()
    log = tmp_path / "log"
    flags = ("--split", "100,0,0", "--eval-iters", "0", "--no-shuffle", "--verify-data-seconds", "0")
    ranks = start_ranks(log, "--data-path", str(files), "--run-dir", str(tmp_path / "run"), *flags)
    assert statuses(ranks) == [1, 2], log.read_text()[-3000:]
    said = log.read_text()
    assert 0 < said.index("(rank 1): error: pack 6 of") < said.index("ended: another rank is gone")
    assert "Traceback" not in said


@pytest.mark.parametrize("extra", [(), pytest.param(("--async-save",), marks=pytest.mark.long)], ids=["now", "beside"])
def test_a_full_disk_does_not_end_the_run(data, tmp_path, extra):
    """No file may grow beyond 200 KiB: every save on the way fails, loudly, on both ranks; training goes on."""
    save, log = tmp_path / "checkpoint", tmp_path / "log"
    flags = ("--data-path", data, "--save", str(save), "--save-interval", "2", "--eval-iters", "0")
    ranks = start_ranks(log, *flags, *extra, limit_kib=200)
    assert statuses(ranks) == [2, 2], log.read_text()[-3000:]
    said = log.read_text()
    assert said.count("NOT SAVED: ") == 2 and "MiB are free on that disk" in said
    assert list(losses(save / "run")) == [1, 2, 3, 4, 5, 6]
    assert checkpoints(save) == [name for name in checkpoints(save) if name.endswith(".saving")]
    assert "pretrain_gpt.py: error: " in said, "the last checkpoint could not be written: that is an error"


def test_too_little_disk_space_is_detected_before_writing(data, tmp_path, monkeypatch, capsys):
    import shutil

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100_000))
    save = tmp_path / "checkpoint"
    run = ("--data-path", data, "--save", str(save), "--save-interval", "4", "--eval-iters", "0")
    status = run_program(lambda: pretrain(monkeypatch, *run), "pretrain_gpt.py")
    said = capsys.readouterr()
    assert status == 2 and "NOT SAVED" in said.err and "MiB are needed" in said.err
    assert json.loads((save / "run" / "metrics.jsonl").read_text().splitlines()[-1])["iteration"] == 6
