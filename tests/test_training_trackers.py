"""Figures go to other places too, if asked for, and nothing that happens there ends a run."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tiny_runs import ROOT, pretrain, train_records, write_files

from mindspeed_llm.errors import ConfigError

FLAGS = {
    "tensorboard": ("--tensorboard-dir", "tb"),
    "swanlab": ("--swanlab-mode", "local"),
    "wandb": ("--wandb-project", "packs"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


def run(monkeypatch, data: str, run_dir: Path, *flags: str) -> None:
    pretrain(monkeypatch, "--data-path", data, "--run-dir", str(run_dir), "--train-iters", "2", *flags)


@pytest.mark.parametrize("package", FLAGS)
def test_a_missing_package_is_named_before_anything_starts(data, monkeypatch, tmp_path, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))
    with pytest.raises(ConfigError) as raised:
        run(monkeypatch, data, tmp_path / "run", *FLAGS[package])
    advice = f"{FLAGS[package][0]} needs the package {package}: pip install -e '.[{package}]'"
    assert raised.value.problems[0].startswith(advice)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", FLAGS)
def test_the_install_hint_names_the_right_package(package):
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11's tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert [Requirement(word).name for word in extras[package]] == [package]


def stand_in(monkeypatch, fail_at: int | None = None) -> list:
    """A package 'swanlab' that writes down what it is told."""
    told: list = []

    class Run:
        def log(self, figures, step):
            if step == fail_at:
                raise ConnectionError("the service is gone")
            told.append((step, figures))

    module = types.ModuleType("swanlab")
    module.__spec__ = importlib.util.spec_from_loader("swanlab", None)
    module.init = lambda **given: told.append(given) or Run()  # type: ignore[attr-defined]
    module.finish = lambda: told.append("finished")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swanlab", module)
    return told


def test_a_tracker_gets_the_figures_of_every_line(data, monkeypatch, tmp_path):
    told = stand_in(monkeypatch)
    run(monkeypatch, data, tmp_path / "run", "--swanlab-project", "packs")
    given, *lines, end = told
    assert (given["project"], given["mode"], end) == ("packs", "local", "finished")
    losses = {step: figures["train/loss"] for step, figures in lines if "train/loss" in figures}
    assert losses == {step: record["loss"] for step, record in train_records(tmp_path / "run").items()}
    assert [step for step, figures in lines if "valid/loss" in figures] == [0, 2]


def test_a_tracker_that_fails_is_disabled(data, monkeypatch, tmp_path, capsys):
    told = stand_in(monkeypatch, fail_at=1)
    run(monkeypatch, data, tmp_path / "run", "--swanlab-mode", "cloud")
    assert list(train_records(tmp_path / "run")) == [1, 2]
    warnings = capsys.readouterr().err
    assert warnings.count("SwanLab failed (ConnectionError: the service is gone) and is disabled") == 1
    assert [entry[0] for entry in told[1:]] == [0]


def test_tensorboard_has_the_losses(data, monkeypatch, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard, which is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(monkeypatch, data, tmp_path / "run", "--tensorboard-dir", str(tmp_path / "tb"))
    events = EventAccumulator(str(tmp_path / "tb")).Reload().Scalars("train/loss")
    expected = {step: record["loss"] for step, record in train_records(tmp_path / "run").items()}
    assert {event.step: event.value for event in events} == pytest.approx(expected, rel=1e-6)


def test_wandb_writes_into_the_run_folder(data, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="needs the package wandb, which is not installed")
    run(monkeypatch, data, tmp_path / "run", "--wandb-project", "packs")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_swanlab_writes_into_the_run_folder(data, monkeypatch, tmp_path):
    pytest.importorskip("swanlab", reason="needs the package swanlab, which is not installed")
    run(monkeypatch, data, tmp_path / "run", "--swanlab-mode", "offline")
    assert any((tmp_path / "run" / "swanlab").iterdir())
