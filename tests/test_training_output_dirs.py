"""Where a run writes: folders that cannot be written are named before it starts; the bar on terminals of any size."""

from __future__ import annotations

import errno
import importlib
import os
import pty
import select
import sys
from pathlib import Path

import pytest
from tiny_runs import pretrain, write_files

from mindspeed_llm.devices import apply_patches
from mindspeed_llm.errors import ConfigError


def test_all_unwritable_directories_are_reported_together(tmp_path):
    apply_patches("cpu")
    from mindspeed_llm.training.output_dirs import check_writable

    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as raised:
        check_writable(
            {"--save": tmp_path / "file", "--run-dir": tmp_path / "file" / "run", "--good": tmp_path / "a/b"}
        )
    assert [line.split()[0] for line in raised.value.problems] == ["--save", "--run-dir"]
    assert list(tmp_path.iterdir()) == [tmp_path / "file"], "nothing was made"


def test_a_run_that_cannot_write_does_not_start(tmp_path, monkeypatch):
    data = str(write_files(tmp_path / "data"))
    (tmp_path / "file").touch()
    apply_patches("cpu")
    run = importlib.import_module("mindspeed_llm.training.run_training")
    monkeypatch.setattr(run, "init_distributed", lambda *_: pytest.fail("a process group started"))
    file = tmp_path / "file"
    with pytest.raises(ConfigError, match=r"--save .*/file/save: .*/file is a file, not a folder"):
        pretrain(monkeypatch, "--data-path", data, "--save", str(file / "save"))
    for flag in ("--save", "--run-dir", "--tensorboard-dir"):
        with pytest.raises(ConfigError, match=rf"^{flag} {file}: is a file, not a folder$"):
            pretrain(monkeypatch, "--data-path", data, flag, str(file))
    for place, reason in ((file, "a file, not a folder"), (file / "inside", "no such directory")):
        with pytest.raises(ConfigError, match=rf"^--load {place}: {reason}"):
            pretrain(monkeypatch, "--data-path", data, "--load", str(place))
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK):  # root may write anywhere
        return
    with pytest.raises(ConfigError, match=r"--save .*/closed/save: cannot be written"):
        pretrain(monkeypatch, "--data-path", data, "--save", str(tmp_path / "closed" / "save"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_unwritable_metrics_do_not_end_a_run(tmp_path: Path, capsys):
    """A full disk fails more than saves. The error is logged once."""
    apply_patches("cpu")
    from mindspeed_llm.training.metrics_writer import FILE_NAME, MetricsWriter

    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path, total=4, done=1, active=True)
    for iteration in range(3):
        writer.record("train", {"iteration": iteration, "loss": 1.0})
    writer.close()
    errors = capsys.readouterr().err
    assert errors.count("NOT WRITTEN") == 1 and "No space left on device; training continues" in errors


def test_plots_that_cannot_be_drawn_do_not_fail_a_run(tmp_path: Path, monkeypatch, capsys):
    from mindspeed_llm.programs import pretrain as program

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(program, "draw", fail)
    data = str(write_files(tmp_path / "data"))
    pretrain(monkeypatch, "--data-path", data, "--run-dir", str(tmp_path / "run"), "--train-iters", "1")
    assert f"warning: no pictures in {tmp_path / 'run'}: [Errno 28]" in capsys.readouterr().err


def test_the_bar_shows_on_a_terminal_of_unknown_size(tmp_path: Path, monkeypatch):
    apply_patches("cpu")
    from mindspeed_llm.training.metrics_writer import MetricsWriter

    ours, terminal = pty.openpty()  # 0 × 0, as in a container
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        writer = MetricsWriter(tmp_path, total=4, done=1, active=True)
        writer.advance(4)
        writer.close()
        shown = ""
        while "4/4" not in shown and select.select([ours], [], [], 10)[0]:
            shown += os.read(ours, 10_000).decode(errors="replace")
    os.close(ours)
    assert "25%" in shown and "4/4" in shown
