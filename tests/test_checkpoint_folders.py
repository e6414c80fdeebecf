"""Folders that a run must not write to, and checkpoints that nothing vouches for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny import VOCABULARY, tiny_arguments
from tiny_runs import pretrain, train_records, write_files

from mindspeed_llm.arguments.hugging_face_config import is_hugging_face_folder
from mindspeed_llm.devices import apply_patches
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.errors import CheckpointError, ConfigError

TRACKER = "latest_checkpointed_iteration.txt"
COULD_NOT = "could not be loaded any more"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a Hugging Face model, as far as its names tell; its config is that of the tiny runs."""
    apply_patches("cpu")
    from mindspeed_llm.conversion import config_of_shape

    folder = tmp_path / "models" / "hf"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of_shape(tiny_arguments().model, VOCABULARY, 32)))
    (folder / "model-00001-of-00002.safetensors").touch()
    return folder


def problems(words: str) -> list[str]:
    """What is wrong with a command."""
    try:
        tiny_arguments(words)
    except ConfigError as error:
        return error.problems
    return []


def test_save_does_not_name_a_hugging_face_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is spelled, whether --load names it or not; its checkpoints would take the model's place."""
    monkeypatch.chdir(model)
    link = model.parent.parent / "link"
    link.symlink_to(model)
    for save in (str(model), f"{model}/", ".", "../hf", str(link)):
        for load in ("", f"--load {model}", f"--load {link}"):
            [problem] = problems(f"--save {save} {load}")
            assert problem.startswith(f"--save {save}: ") and COULD_NOT in problem
            assert ("--load names the same folder" in problem) == bool(load)
    for weights in model.glob("*.safetensors"):
        weights.rename(weights.with_name("pytorch_model.bin"))
    assert len(problems(f"--save {model}")) == 1
    assert problems(f"--save {model}/checkpoints") == problems(f"--save {model.parent}") == [], "no harm is done"


def test_a_folder_with_another_config_may_be_saved_to(model: Path, tmp_path: Path) -> None:
    """A launcher's config.json, or a Megatron folder that carries one: neither is a model in this format."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    assert problems(f"--save {tmp_path}/out") == []
    (model / TRACKER).write_text("1\n")
    assert problems(f"--save {model} --load {model}") == []


def test_an_export_does_not_overwrite_its_input(model: Path, tmp_path: Path) -> None:
    """An export replaces a whole folder, and refuses one with other things in it: not after weeks, but at the start."""
    out, save = tmp_path / "out", tmp_path / "save"
    for flag, words in {
        "--load": f"--load {model} --save {save} --save-hf {model}/../hf",
        "--tokenizer-name-or-path": f"--tokenizer-type PretrainedFromHF --tokenizer-name-or-path {model} --save {save} "
        f"--save-hf {model.parent}/./hf",
        "--save": f"--save {save} --save-hf {tmp_path}/x/../save",
    }.items():
        [problem] = problems(words)
        assert problem.startswith("--save-hf ") and f"{flag} names the same folder" in problem
    [problem] = problems(f"--save {out}/checkpoints --save-hf {out}")
    assert problem.startswith(f"--save {out}/checkpoints: inside --save-hf")
    [problem] = problems(f"--save {save} --run-dir {out}/run --save-hf {out}")
    assert problem.startswith(f"--run-dir {out}/run: inside --save-hf")
    assert problems(f"--save {save} --save-hf {save}/hf --load {model}") == []


def test_a_conversion_does_not_write_into_a_hugging_face_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
    from mindspeed_llm.conversion import convert
    from mindspeed_llm.conversion.convert import HuggingFaceWeights

    monkeypatch.setattr(HuggingFaceWeights, "__init__", lambda self, *_, **__: setattr(self, "dtypes", {}))
    monkeypatch.setattr(HuggingFaceWeights, "check", lambda *_: None)
    before = sorted(model.iterdir())
    with pytest.raises(ConfigError, match=f"--save-dir .*{COULD_NOT}"):
        convert(
            parse_convert_arguments(["--load-dir", str(model), "--save-dir", f"{model}/", "--params-dtype", "bf16"])
        )
    assert sorted(model.iterdir()) == before and is_hugging_face_folder(model)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """--save folder of a run of two iterations with a checkpoint of each."""
    save = tmp_path_factory.mktemp("finished") / "save"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, *command(data, save))
    return save


def command(data: str, save: Path, iterations: int = 2) -> list[str]:
    words = f"--data-path {data} --save {save} --save-interval 1 --eval-iters 0 --lr-decay-iters 3"
    return [*words.split(), "--train-iters", str(iterations)]


def test_without_its_list_of_files_a_checkpoint_is_refused(
    finished: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """run.json says that this program wrote it, so the list was removed: nobody knows what else was changed."""
    from mindspeed_llm.storage.checkpoint_file_list import check_hashes

    save = tmp_path / "save"
    shutil.copytree(finished, save)
    newest = save / "iter_0000002"
    (newest / "files.json").unlink()
    loading = ["--data-path", data, "--load", str(save), "--finetune", "--run-dir", str(tmp_path / "run")]
    for words in (command(data, save), command(data, save, 3), loading):
        assert run_program(lambda words=words: pretrain(monkeypatch, *words), "pretrain_gpt.py") == 2
        said = capsys.readouterr().err
        assert f"error: {newest}/files.json: missing" in said
        assert all(way in said for way in ("Restore it", "another checkpoint", "remove run.json as well"))
    with pytest.raises(CheckpointError, match=r"iter_0000002/files\.json: missing, although this program wrote"):
        check_hashes(newest)
    assert not (tmp_path / "run").exists() and sorted(save.glob("iter_*")) == [save / "iter_0000001", newest]

    # The ways out. As another program's checkpoint its weights can be taken, but no run continues from it.
    record = (newest / "run.json").read_text()
    (newest / "run.json").unlink()
    pretrain(monkeypatch, *loading, "--train-iters", "1")
    assert list(train_records(tmp_path / "run")) == [1]
    with pytest.raises(CheckpointError, match="it was written by another program"):
        pretrain(monkeypatch, *command(data, save))
    (newest / "run.json").write_text(record)
    (save / TRACKER).write_text("1\n")
    pretrain(monkeypatch, *command(data, save))
    assert "set aside: iter_0000002 is later than iteration 1" in capsys.readouterr().err


def test_an_older_checkpoint_without_a_file_list_is_skipped(
    finished: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is damaged, which its list proves; of the one before it nothing is known."""
    save = tmp_path / "save"
    shutil.copytree(finished, save)
    (save / "iter_0000001" / "files.json").unlink()
    (save / "iter_0000002" / "common.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"common\.pt: 0 bytes.*no other checkpoint there can be used"):
        pretrain(monkeypatch, *command(data, save))


def test_results_of_an_abandoned_save_do_not_become_the_index_of_the_next(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All saves of a process share one queue for them. A save that fails on another rank leaves its own there."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._get_write_results_queue().put({0: []})
    for iterations in (1, 2):  # the second start reads what the first has saved
        pretrain(monkeypatch, *command(data, tmp_path / "save", iterations))
    assert list(train_records(tmp_path / "save" / "run")) == [1, 2]
