"""Checkpoints that outlive a kill, tell of damage, and run no code when they are loaded."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from time_limits import HANG_SECONDS
from tiny_runs import pretrain, stopped_run, train_records, write_files

from mindspeed_llm.errors import CheckpointError

PROGRAM = Path(__file__).with_name("saving_program.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="module")
def six(data, tmp_path_factory) -> Path:
    """--save folder of a run of six iterations, one checkpoint after every second."""
    save = tmp_path_factory.mktemp("six") / "checkpoint"
    with pytest.MonkeyPatch.context() as monkeypatch:
        pretrain(monkeypatch, "--data-path", data, "--save", str(save), "--save-interval", "2")
    return save


@pytest.fixture
def four(six, tmp_path) -> Path:
    """What that run would have left, had it been stopped after its fourth iteration."""
    return stopped_run(six, tmp_path / "checkpoint", 4)


def go_on(monkeypatch, data: str, save: Path, *flags: str) -> list[int]:
    """Start the same command again; the iterations it did."""
    pretrain(monkeypatch, "--data-path", data, "--save", str(save), "--save-interval", "2", *flags)
    return list(train_records(save / "run"))


def kills(folder: Path, step: int) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(step)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_save_leaves_a_complete_checkpoint(tmp_path, step):
    """Killed at every (or every eleventh) file operation: the old one or the new one, never anything between."""
    results = kills(tmp_path, step)
    for result in results:
        assert result["damage"] == [], result
        expected = {"iter_0000001": (1.0, 2.0) if result["again"] else (1.0,), "iter_0000002": (2.0,)}
        expected["iter_0000001.replaced"] = (1.0,)
        assert result["value"] in expected[result["left"]], result
        assert result["names_after"] == ["iter_0000003", "latest_checkpointed_iteration.txt"], "and no leftovers"
        assert result["aside_after"] in ([], ["iter_0000001"] if result["again"] else []), "replaced, not removed"
    seen = {name for result in results for name in result["at"]}
    assert {"iter_0000002.saving", "iter_0000002"} <= seen
    if step == 1:
        assert {"iter_0000001.replaced", "iter_0000001.removing", "latest_checkpointed_iteration.txt.tmp"} <= seen
    assert {result["value"] for result in results} == {1.0, 2.0}
    assert sum(result["through"] for result in results) == 2


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_corrupted_checkpoint_is_detected_and_the_previous_one_is_used(four, six, data, monkeypatch, capsys):
    flip_a_byte(four / "iter_0000004" / "__0_1.distcp")
    assert go_on(monkeypatch, data, four) == [3, 4, 5, 6]
    said = capsys.readouterr().err
    assert "iter_0000004/__0_1.distcp: its bytes have changed" in said
    assert f"starting from the checkpoint before it, {four / 'iter_0000002'}" in said
    straight, resumed = train_records(six / "run"), train_records(four / "run")
    assert [resumed[i]["loss"] for i in resumed] == [straight[i]["loss"] for i in resumed]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "common.pt", "run.json", "metadata.json"])
def test_damage_in_any_file_of_a_checkpoint_is_detected(six, name):
    from mindspeed_llm.checkpoints import find_damage

    folder = six / "iter_0000002"
    before = (folder / name).read_bytes()
    assert find_damage(folder) == []
    try:
        flip_a_byte(folder / name)
        assert [name in line and "SHA-256" in line for line in find_damage(folder)] == [True]
        (folder / name).write_bytes(before[:-1])
        assert [name in line and "bytes" in line for line in find_damage(folder)] == [True]
        (folder / name).unlink()
        assert find_damage(folder) == [f"{folder / name}: missing"]
    finally:
        (folder / name).write_bytes(before)


def test_with_all_checkpoints_damaged_nothing_is_trained(four, data, monkeypatch):
    for folder in four.glob("iter_*"):
        (folder / "common.pt").unlink()
    with pytest.raises(CheckpointError, match=r"common\.pt: missing; no other checkpoint"):
        go_on(monkeypatch, data, four)


def test_the_checkpoint_of_a_finished_run_is_checked_too(six, data, monkeypatch, tmp_path, capsys):
    """Its newest checkpoint is damaged: it is not complete, and what is missing is trained again to the same end."""
    from mindspeed_llm.checkpoints import find_damage

    save = tmp_path / "checkpoint"
    shutil.copytree(six, save)
    (save / "run" / "metrics.jsonl").unlink()
    flip_a_byte(save / "iter_0000006" / "__0_0.distcp")
    assert go_on(monkeypatch, data, save) == [5, 6]
    said = capsys.readouterr()
    assert "iter_0000006/__0_0.distcp: its bytes have changed" in said.err
    assert "the run is complete" not in said.out
    straight, resumed = train_records(six / "run"), train_records(save / "run")
    assert [resumed[i]["loss"] for i in (5, 6)] == [straight[i]["loss"] for i in (5, 6)]
    assert find_damage(save / "iter_0000006") == []
    assert go_on(monkeypatch, data, save) == [5, 6], "nothing is done again"
    assert "the run is complete: 6 of 6" in capsys.readouterr().out


def test_a_damaged_complete_run_without_another_checkpoint_is_refused(six, data, monkeypatch, tmp_path):
    save = tmp_path / "checkpoint"
    shutil.copytree(six, save)
    for number in (2, 4):
        shutil.rmtree(save / f"iter_000000{number}")
    flip_a_byte(save / "iter_0000006" / ".metadata")
    with pytest.raises(CheckpointError, match=r"--save .*\.metadata: its bytes have changed.*; no other checkpoint"):
        go_on(monkeypatch, data, save)


@pytest.mark.parametrize("how", ["flipped", "identity", "missing"])
def test_a_damaged_record_counts_as_damage(four, data, monkeypatch, capsys, how):
    """run.json is read first of all files: one flipped byte may make it unreadable, or that of another run."""
    record = four / "iter_0000004" / "run.json"
    if how == "missing":
        record.unlink()
    elif how == "flipped":
        record.write_bytes(record.read_bytes().replace(b'"progress"', b'"prugress"'))
    else:
        record.write_bytes(record.read_bytes().replace(b'"--seed": 1234', b'"--seed": 1235'))
    assert go_on(monkeypatch, data, four) == [3, 4, 5, 6]
    said = capsys.readouterr().err
    assert "DAMAGED CHECKPOINT" in said and "iter_0000004/run.json" in said and "iter_0000002" in said


@pytest.mark.parametrize(("finetune", "name"), [(True, "__0_0.distcp"), (False, "run.json")])
def test_if_the_checkpoint_of_load_is_damaged_the_previous_one_is_used(
    four, six, data, monkeypatch, tmp_path, capsys, finetune, name
):
    """Said aloud; the run is the one that starts from that checkpoint."""
    flip_a_byte(four / "iter_0000004" / name)
    words = ("--data-path", data, *(("--finetune",) if finetune else ()))
    pretrain(monkeypatch, *words, "--load", str(four), "--run-dir", str(tmp_path / "damaged"))
    said = capsys.readouterr()
    assert f"iter_0000004/{name}: its bytes have changed" in said.err
    assert f"starting from the checkpoint before it, {four / 'iter_0000002'}" in said.err
    (four / "latest_checkpointed_iteration.txt").write_text("2\n")
    pretrain(monkeypatch, *words, "--load", str(four), "--run-dir", str(tmp_path / "named"))
    own, expected = (train_records(tmp_path / name) for name in ("damaged", "named"))
    assert list(own) == ([1, 2, 3, 4, 5, 6] if finetune else [3, 4, 5, 6])
    assert [own[i]["loss"] for i in own] == [expected[i]["loss"] for i in expected]


def test_a_damaged_checkpoint_of_load_without_a_previous_one_is_refused(four, data, monkeypatch, tmp_path):
    flip_a_byte(four / "iter_0000004" / "__0_0.distcp")
    words = ("--data-path", data, "--load", str(four), "--finetune", "--run-dir", str(tmp_path / "run"))
    record = four / "iter_0000002" / "run.json"
    content = json.loads(record.read_text())
    content["identity"]["--seed"] = 77
    record.write_text(json.dumps(content))
    (four / "iter_0000002" / "files.json").unlink()
    with pytest.raises(CheckpointError, match=r"--load .*__0_0\.distcp: its bytes have changed.*; no other checkpoint"):
        pretrain(monkeypatch, *words)
    shutil.rmtree(four / "iter_0000002")
    with pytest.raises(CheckpointError, match=r"--load .*__0_0\.distcp: its bytes have changed.*; no other checkpoint"):
        pretrain(monkeypatch, *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["__0_1.distcp", "common.pt"])
def test_a_damaged_checkpoint_is_not_converted(four, tmp_path, name):
    """What goes out as a Hugging Face folder has no hashes of its own: a flipped byte would never be found again."""
    from tiny import VOCABULARY, tiny_arguments

    from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
    from mindspeed_llm.conversion import config_of_shape, convert

    (tmp_path / "hf").mkdir()
    shape = config_of_shape(tiny_arguments().model, VOCABULARY, 32)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(shape))
    words = f"--load-model-type mg --save-model-type hf --load-dir {four} --hf-dir {tmp_path}/hf --save-dir {tmp_path}"
    convert(parse_convert_arguments(f"{words}/whole".split()))
    assert (tmp_path / "whole" / "model.safetensors").exists()
    flip_a_byte(four / "iter_0000004" / name)
    with pytest.raises(CheckpointError, match=rf"iter_0000004/{name}: its bytes have changed"):
        convert(parse_convert_arguments(f"{words}/damaged".split()))
    assert not (tmp_path / "damaged").exists()


def test_keep_last_removes_older_checkpoints(data, monkeypatch, tmp_path):
    save = tmp_path / "checkpoint"
    go_on(monkeypatch, data, save, "--keep-last", "2")
    assert sorted(path.name for path in save.glob("iter_*")) == ["iter_0000004", "iter_0000006"]


def test_keep_last_does_not_remove_the_initial_weights(six, data, monkeypatch, tmp_path):
    """--save may name the folder of --load: what another run wrote there is not this run's to remove."""
    save = tmp_path / "checkpoint"
    shutil.copytree(six, save)
    flags = ("--load", str(save), "--finetune", "--keep-last", "1", "--seed", "5", "--train-iters", "5")
    pretrain(monkeypatch, "--data-path", data, "--save", str(save), *flags)
    assert [path.name for path in sorted(save.glob("iter_*"))] == [f"iter_000000{i}" for i in (2, 4, 5, 6)]


def test_async_saves_are_complete_and_resume_exactly(six, data, monkeypatch, tmp_path):
    from mindspeed_llm.checkpoints import find_damage

    save = tmp_path / "checkpoint"
    go_on(monkeypatch, data, save, "--async-save")
    folders = sorted(save.glob("iter_*"))
    assert [folder.name for folder in folders] == ["iter_0000002", "iter_0000004", "iter_0000006"]
    assert all(find_damage(folder) == [] for folder in folders)
    shutil.rmtree(save / "iter_0000006")
    (save / "latest_checkpointed_iteration.txt").write_text("4\n")
    (save / "run" / "metrics.jsonl").unlink()
    assert go_on(monkeypatch, data, save) == [5, 6]
    straight, resumed = train_records(six / "run"), train_records(save / "run")
    assert [resumed[i]["loss"] for i in (5, 6)] == [straight[i]["loss"] for i in (5, 6)]


class Attack:
    """Unpickled, it would create a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def without_hashes(folder: Path) -> Path:
    """As another program would have written it: nothing tells that its bytes are not those."""
    (folder / "files.json").unlink()
    return folder


def refused(monkeypatch, data: str, save: Path, trace: Path, message: str) -> None:
    from mindspeed_llm.checkpoints import integrity

    for folder in save.glob("iter_*"):  # whoever changes a checkpoint can make its list of files anew
        if not (folder / "files.json").exists():
            integrity.seal_checkpoint(folder)
    with pytest.raises(CheckpointError, match=message):
        go_on(monkeypatch, data, save)
    assert not trace.exists(), "code of the file was run"


def test_a_crafted_index_executes_no_code(four, data, monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    folder = without_hashes(four / "iter_0000004")
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = Attack(trace)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    refused(monkeypatch, data, four, trace, r"\.metadata: refused, loading it could run code: it names")


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch.hub.load", "pathlib.Path.touch"])
def test_names_outside_the_list_are_not_even_imported(tmp_path, name):
    from mindspeed_llm.conversion.checkpoint_index import read_checkpoint_index

    module, _, attribute = name.rpartition(".")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint_index(tmp_path)


def test_a_crafted_common_file_executes_no_code(four, data, monkeypatch, tmp_path):
    trace = tmp_path / "trace"
    torch.save({"optimizer": Attack(trace)}, without_hashes(four / "iter_0000004") / "common.pt")
    refused(monkeypatch, data, four, trace, r"common\.pt: refused")


def test_bytes_instead_of_a_tensor_execute_no_code(four, data, monkeypatch, tmp_path):
    """An index that says 'pickled bytes' of a weight, and those bytes: torch's reader would unpickle them."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    trace = tmp_path / "trace"
    folder = without_hashes(four / "iter_0000004")
    index = pickle.loads((folder / ".metadata").read_bytes())
    key = "decoder.final_layernorm.weight"
    content = io.BytesIO()
    torch.save(Attack(trace), content)
    place = next(place for at, place in index.storage_data.items() if at.fqn == key)
    with (folder / place.relative_path).open("ab") as file:
        place.offset, place.length = file.tell(), len(content.getvalue())
        file.write(content.getvalue())
    index.state_dict_metadata[key] = BytesStorageMetadata()
    index.storage_data[MetadataIndex(key)] = place
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    refused(monkeypatch, data, four, trace, f"{key} is an entry of pickled bytes where a tensor is expected")


def test_saved_checkpoints_contain_no_pickled_bytes(six):
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    from mindspeed_llm.conversion.checkpoint_index import read_checkpoint_index

    entries = read_checkpoint_index(six / "iter_0000006").state_dict_metadata.values()
    assert entries and all(isinstance(entry, TensorStorageMetadata) for entry in entries)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("progress", {"iteration": "2", "consumed_samples": 8}),
        ("progress", {"iteration": 2.5, "consumed_samples": 8}),
        ("progress", {"iteration": -2, "consumed_samples": 8}),
        ("layout", None),
        ("identity", 3),
        ("has_optimizer", "yes"),
    ],
)
def test_a_record_with_a_wrong_value_is_reported(six, tmp_path, field, value):
    from mindspeed_llm.checkpoints import RunMetadata

    record = json.loads((six / "iter_0000002" / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert RunMetadata.read(tmp_path) == RunMetadata.read(six / "iter_0000002")
    (tmp_path / "run.json").write_text(json.dumps({**record, field: value}))
    with pytest.raises(CheckpointError, match=rf"run.json: damaged \({field}"):
        RunMetadata.read(tmp_path)


def test_a_checkpoint_of_another_shape_is_refused_in_one_line(six, data, monkeypatch, tmp_path):
    folder = shutil.copytree(six, tmp_path / "of another program")
    for name in ("run.json", "files.json"):  # with them the flag is refused before anything is loaded
        (folder / "iter_0000006" / name).unlink()
    shutil.rmtree(folder / "iter_0000006" / "hugging_face")
    words = ("--data-path", data, "--ffn-hidden-size", "64", "--load", str(folder), "--finetune")
    with pytest.raises(CheckpointError, match=r"iter_0000006: does not fit this model: .*mlp\.linear_fc1") as raised:
        pretrain(monkeypatch, *words, "--run-dir", str(tmp_path / "run"))
    assert "\n" not in str(raised.value)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_of_an_async_save_is_a_failed_save(data, monkeypatch, tmp_path, capsys):
    """For want of memory, say: loud, no checkpoint of it, training goes on and the next is saved."""
    from mindspeed_llm.devices import apply_patches

    apply_patches("cpu")
    from mindspeed_llm.checkpoints import find_damage, save_checkpoint

    real, begun = save_checkpoint.dist_checkpointing.save, []

    def first_writer_dies(*arguments: object, **named: object):
        begun.append(True)
        request = real(*arguments, **named)
        return request._replace(async_fn=die) if len(begun) == 1 else request

    monkeypatch.setattr(save_checkpoint.dist_checkpointing, "save", first_writer_dies)
    save = tmp_path / "checkpoint"
    assert go_on(monkeypatch, data, save, "--async-save") == [1, 2, 3, 4, 5, 6]
    assert capsys.readouterr().err.count("NOT SAVED: ") == 1
    assert [path.name for path in sorted(save.glob("iter_*"))] == ["iter_0000004", "iter_0000006"]
    assert all(find_damage(path) == [] for path in save.glob("iter_*"))
