"""What a run leaves and says: the best checkpoint, early stopping, exports at intervals, pictures and log lines."""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from pathlib import Path

import pytest
from hugging_face_models import make_model
from tiny_runs import RUN, SHAPE, losses, pretrain, stopped_run, write_files

from mindspeed_llm.arguments.convert_arguments import ConvertArguments
from mindspeed_llm.devices import apply_patches
from mindspeed_llm.errors import DataError
from mindspeed_llm.reports import read_metrics


@pytest.fixture(autouse=True)
def _patches() -> None:
    apply_patches("cpu")


# Iteration → held-out loss of a run that gets better up to iteration 6.
HELD_OUT = {2: 5.0, 4: 4.0, 6: 3.0, 8: 3.5, 10: 3.2, 12: 2.0}
FLAGS = ("--train-iters", "12", "--eval-interval", "2", "--best-checkpoint", "--save-interval", "5")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_files(tmp_path / "data")


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluations return the losses of HELD_OUT."""
    from mindspeed_llm.training.trainer import Trainer

    evaluate = Trainer.evaluate

    def scripted(trainer: Trainer, split: str) -> float | None:
        loss = evaluate(trainer, split)
        return HELD_OUT.get(trainer.progress.iteration, loss)

    monkeypatch.setattr(Trainer, "evaluate", scripted)


def checkpoints(save: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("iter_")) for folder in save.glob("iter_*"))


def same_files(one: Path, two: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in two.iterdir()):
        return False
    return filecmp.cmpfiles(one, two, names, shallow=False)[0] == names


@pytest.mark.usefixtures("held_out")
def test_early_stopping_keeps_and_exports_the_best_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that was stopped before ends with the same files."""
    from mindspeed_llm.checkpoints import best_checkpoint
    from mindspeed_llm.conversion import convert

    save, out = tmp_path / "save", tmp_path / "out"
    flags = ("--data-path", str(data), *FLAGS, "--early-stopping", "2", "--keep-last", "1")
    pretrain(monkeypatch, *flags, "--save", str(save), "--save-hf", str(out))
    assert checkpoints(save) == [6, 10] and best_checkpoint(save) == save / "iter_0000006"
    said = capfd.readouterr().out
    line = "--early-stopping 2: the run ends after iteration 10, because 2 evaluations had no lower held-out loss"
    assert f"{line}; the lowest is 3.000000 after iteration 6" in said
    assert f"exporting {save / 'iter_0000006'}, the checkpoint with the lowest held-out loss" in said
    arguments = {"load_model_type": "mg", "save_model_type": "hf"}
    convert(ConvertArguments(load_dir=str(save / "iter_0000006"), save_dir=str(tmp_path / "best"), **arguments))
    assert same_files(out, tmp_path / "best")

    pretrain(monkeypatch, *flags, "--save", str(save))
    assert f"the run is complete: {line}" in capfd.readouterr().out

    stopped = stopped_run(save, tmp_path / "stopped", 6)
    pretrain(monkeypatch, *flags, "--save", str(stopped))
    assert checkpoints(stopped) == [6, 10] and losses(stopped) == losses(save)[6:]


@pytest.mark.usefixtures("held_out")
@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.long), ("--async-save",)])
def test_a_better_checkpoint_replaces_one_that_was_saved_as_the_best_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Without --keep-last the checkpoints of --save-interval stay."""
    pretrain(monkeypatch, "--data-path", str(data), *FLAGS, "--save", str(tmp_path / "save"), *more)
    assert checkpoints(tmp_path / "save") == [5, 10, 12]


def test_progress_notes_the_lowest_loss() -> None:
    from mindspeed_llm.checkpoints import TrainingProgress

    progress = TrainingProgress(iteration=5)
    assert progress.note_evaluation(2.0) and (progress.best_iteration, progress.evaluations_since_best) == (5, 0)
    progress.iteration = 10
    assert not progress.note_evaluation(2.0) and not progress.note_evaluation(float("nan"))
    assert (progress.best_loss, progress.best_iteration, progress.evaluations_since_best) == (2.0, 5, 2)
    assert progress.note_evaluation(1.5) and (progress.best_iteration, progress.evaluations_since_best) == (10, 0)


LORA = ("--lora-target-modules", "q_proj", "--lora-r", "2", "--async-save")


@pytest.mark.parametrize("more", [pytest.param((), marks=pytest.mark.long), LORA])
def test_checkpoints_are_exported_at_intervals(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """The folders are those of convert_ckpt.py, bit for bit; --keep-last removes those of removed checkpoints."""
    from mindspeed_llm.conversion import convert

    make_model("Qwen2.5", tmp_path / "base")
    save, is_lora = tmp_path / "save", "--lora-r" in more
    flags = ("--data-path", str(data), "--save", str(save), "--load", str(tmp_path / "base"), *more)
    intervals = ("--save-interval", "1", "--save-hf-interval", "2", "--keep-last", "3", "--train-iters", "6")
    pretrain(monkeypatch, *flags, *intervals, run=RUN.replace(SHAPE, ""))
    assert checkpoints(save) == [4, 5, 6]
    assert sorted(path.name for path in (save / "hf").iterdir()) == ["iter_0000004", "iter_0000006"]
    for name in ("iter_0000004", "iter_0000006"):
        source, target = str(save / name), tmp_path / "converted" / name
        arguments = ConvertArguments(load_dir=source, save_dir=str(target), load_model_type="mg", save_model_type="hf")
        arguments.save_lora_to_hf = is_lora
        convert(arguments)
        assert same_files(save / "hf" / name, target)


def test_an_export_that_fails_does_not_end_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save = tmp_path / "save"
    (save / "hf" / "iter_0000002").mkdir(parents=True)
    (save / "hf" / "iter_0000002" / "notes.txt").write_text("mine")
    flags = ("--data-path", str(data), "--save", str(save), "--save-interval", "2", "--save-hf-interval", "2")
    pretrain(monkeypatch, *flags, "--train-iters", "2")
    assert f"NOT EXPORTED: {save / 'hf' / 'iter_0000002'}: " in capfd.readouterr().err
    assert checkpoints(save) == [2] and (save / "hf" / "iter_0000002" / "notes.txt").read_text() == "mine"


def test_log_lines_and_picture(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without --log-interval a short run has a line for each step; the picture is there after an error as well."""
    save = tmp_path / "save"
    flags = ("--data-path", str(data), "--save", str(save), "--save-interval", "3", "--eval-interval", "3")
    run = RUN.replace("--log-interval 1", "")
    pretrain(monkeypatch, *flags, run=run)
    said = capfd.readouterr().out
    assert len(re.findall(r"iteration +\d/6 .* \| elapsed 0:00:\d\d", said)) == 6
    assert len(re.findall(r"iteration +\d/6 .* \| ETA 0:00:\d\d", said)) == 5
    assert re.findall(r"saved (.*) in [\d.]+ s", said) == [str(save / f"iter_000000{n}") for n in (3, 6)]
    assert read_metrics(save).train == read_metrics(save / "run").train

    from mindspeed_llm.training import trainer

    def fails_later(*arguments: object, **named: object) -> object:
        fails_later.steps += 1
        if fails_later.steps == 5:
            raise DataError("a pack is damaged")
        return step(*arguments, **named)

    fails_later.steps = 0
    step = trainer.train_step
    monkeypatch.setattr(trainer, "train_step", fails_later)
    shutil.rmtree(save)
    with pytest.raises(DataError, match="a pack is damaged"):
        pretrain(monkeypatch, *flags, run=run)
    assert (save / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_is_drawn_during_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.training import run_pictures

    record = {"kind": "train", "iteration": 1, "loss": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    with run_pictures.RunPictures(tmp_path, True, lambda run_dir: None) as pictures:
        pictures.update()
    assert not (tmp_path / "loss.png").exists(), "a short run draws its picture once, at its end"
    monkeypatch.setattr(run_pictures, "INTERVAL_SECONDS", 0)
    with run_pictures.RunPictures(tmp_path, True, lambda run_dir: None) as pictures:
        pictures.update()
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_remaining_time_does_not_count_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.training.run_clock import RunClock, format_duration

    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = RunClock(iterations=10, done=4)
    now[0] = 100.0
    clock.advance(5)
    assert clock.remaining(5) is None
    now[0] = 106.0
    clock.advance(7)
    assert clock.remaining(7) == 9.0 and clock.elapsed == 106.0
    assert [format_duration(seconds) for seconds in (7, 7439, 266_639)] == ["0:00:07", "2:03:59", "3 d 02:03:59"]
