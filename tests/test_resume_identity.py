"""What a resume refuses, honours with a notice, or does not compare: every flag, and what its files hold."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import write
from resume_changes import FLAGS, PATHS, before_and_after
from tiny import tiny_arguments
from tiny_runs import RUN, pretrain, train_records, write_files

from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.resume_policy import resume_policy_of
from mindspeed_llm.devices import apply_patches
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.indexed_dataset import PackedFiles, PackedFilesWriter
from mindspeed_llm.manifest import manifest_path

apply_patches("cpu")  # before megatron-core is imported
from mindspeed_llm.checkpoints.integrity import seal_checkpoint  # noqa: E402
from mindspeed_llm.checkpoints.metadata import RunMetadata, TrainingProgress  # noqa: E402
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints  # noqa: E402
from mindspeed_llm.checkpoints.run_identity import (  # noqa: E402
    VERSION,
    IdentityChanges,
    compare_identity,
    compute_identity,
    is_same_run,
)

ROOT = Path(__file__).parents[1]


def undeclared(groups: tuple[type, ...]) -> list[str]:
    """Fields that declare no class."""
    found = []
    for flag in (flag for group in groups for flag in declared_flags(group)):
        try:
            resume_policy_of(flag.field)
        except TypeError as error:  # noqa: PERF203 - all of them are listed
            found.append(str(error))
    return found


def test_every_field_declares_its_class():
    assert undeclared(GROUPS) == []


def test_declaration_check_can_fail():
    @dataclasses.dataclass
    class Group:
        declared: int = dataclasses.field(default=1, metadata={"resume": "notice"})
        forgotten: int = 1
        misspelled: int = dataclasses.field(default=1, metadata={"resume": "refused"})

    assert [line.split(":")[0] for line in undeclared((Group,))] == ["forgotten", "misspelled"]


def record_of(identity: dict[str, Any], **others: Any) -> RunMetadata:
    """A record as it is read back from run.json."""
    return RunMetadata(
        TrainingProgress(3, 12), json.loads(json.dumps(identity)), {}, identity_version=VERSION, **others
    )


def changes_of(name: str) -> IdentityChanges:
    before, after = before_and_after(name)
    return compare_identity(record_of(compute_identity(before)), compute_identity(after))


def mentions(lines: tuple[str, ...], name: str) -> bool:
    return any(re.match(rf"{re.escape(name)}(?![\w-])", line) for line in lines)


@pytest.mark.parametrize("name", [name for name in FLAGS if name not in PATHS])
def test_every_flag_is_treated_as_it_declares(name):
    changes = changes_of(name)
    expected = resume_policy_of(FLAGS[name].field)
    assert mentions(changes.refused, name) == (expected == "refuse"), changes
    assert mentions(changes.noticed, name) == (expected == "notice"), changes
    if expected == "free":
        assert changes == IdentityChanges((), (), ())
    before, _ = before_and_after(name)
    assert compare_identity(record_of(compute_identity(before)), compute_identity(before)) == IdentityChanges(
        (), (), ()
    )


def test_both_values_are_named():
    assert changes_of("--lr").noticed == ("--lr: 0.001 until now, 0.0005 from here on",)
    assert changes_of("--no-shuffle").refused == ("--no-shuffle: off in that run, on in this command",)
    assert changes_of("--save-interval").noticed == ("--save-interval: not given until now, 2 from here on",)
    assert changes_of("--no-load-optim").noticed == (
        "--no-load-optim has no effect on resume: it applies only when a run starts for the first time",
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "--kv-channels 16"),
        ("", "--split 1,0,0"),
        ("--padded-vocab-size 300", "--padded-vocab-size 300 --make-vocab-size-divisible-by 64"),
        ("", "--rope-scaling-factor 4"),
        ("", "--max-position-embeddings 32"),
    ],
)
def test_two_spellings_of_one_run_are_equal(one, other):
    assert (
        compare_identity(
            record_of(compute_identity(tiny_arguments(one))), compute_identity(tiny_arguments(other))
        ).refused
        == ()
    )


# A row of the table in docs/training.md: the flags, and the class that its second column begins with.
CLASS_OF_WORD = {"refused": "refuse", "honoured": "notice", "free": "free"}


def test_the_table_of_changes_on_resume_has_every_flag_once():
    lines = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    at = lines.index("| flags | changed on resume |") + 2
    found: dict[str, str] = {}
    for line in lines[at:]:
        if not line.startswith("|"):
            break
        flags, effect = line.strip("|").split("|")
        for name in re.findall(r"`(--[\w-]+)`", flags):
            assert name not in found, name
            found[name] = CLASS_OF_WORD[re.findall(r"\w+", effect)[0]]
    assert found == {name: resume_policy_of(flag.field) for name, flag in FLAGS.items()}


# What the files hold.


def opened(*prefixes: Path) -> tuple[PackedFiles, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(PackedFiles.open(prefix) for prefix in prefixes)


def compared(before: tuple[str, tuple[Path, ...]], now: tuple[str, tuple[Path, ...]]) -> IdentityChanges:
    """Two commands with their data sets, compared; each is (words, prefixes)."""
    sides = []
    for words, prefixes in (before, now):
        arguments = tiny_arguments()
        arguments.data.data_path = []
        arguments.data.split = None if "--train" in words else arguments.data.split
        flag, values = "--data-path", []
        for word in [*words.split(), "--end"]:
            if word.startswith("--"):
                if values:
                    setattr(arguments.data, flag[2:].replace("-", "_"), values)
                flag, values = word, []
            else:
                values.append(word)
        sides.append(compute_identity(arguments, opened(*prefixes)))
    return compare_identity(record_of(sides[0]), sides[1])


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Data sets: a, one of other rows, a's rows in another order, a moved, a renamed, a without its manifest."""
    folder = tmp_path_factory.mktemp("sets")
    found = {name: folder / name for name in ("a", "other", "order", "renamed", "bare")}
    found["moved"] = folder / "elsewhere" / "a"
    found["moved"].parent.mkdir()
    write(found["a"], 4)
    write(found["other"], 5)
    source = opened(found["a"])[0]
    manifest = source.manifest
    assert manifest is not None
    with PackedFilesWriter(found["order"]) as out:
        for number in (3, 1, 2, 0):
            row = [np.asarray(column[number]) for column in (source.input_ids, source.attention_mask, source.labels)]
            out.add(*row)
        out.commit(dataclasses.replace(manifest, files={}))
    for name in ("moved", "renamed", "bare"):
        for file in folder.glob("a_packed_*"):
            shutil.copy(file, found[name].with_name(file.name.replace("a_packed", f"{found[name].name}_packed", 1)))
    manifest_path(found["bare"]).unlink()
    return found


def on(flag: str, *words: object) -> tuple[str, tuple[Path, ...]]:
    return f"{flag} {' '.join(map(str, words))}", tuple(word for word in words if isinstance(word, Path))


def on_a(sets: dict[str, Path], extra: str = "") -> PretrainArguments:
    return tiny_arguments(f"--data-path {sets['a']} {extra}")


@pytest.mark.parametrize("other", ["other", "order"])
def test_other_rows_or_another_order_are_refused(sets, other):
    changes = compared(on("--data-path", sets["a"]), on("--data-path", sets[other]))
    assert [line.split(":")[0] for line in changes.refused] == [f"--data-path {sets[other]}"]
    assert "other data than in that run" in changes.refused[0]


@pytest.mark.parametrize("name", ["moved", "renamed", "bare"])
def test_the_same_files_elsewhere_are_a_notice(sets, name):
    for before, now in ((sets["a"], sets[name]), (sets[name], sets["a"])):
        changes = compared(on("--data-path", before), on("--data-path", now))
        assert changes == IdentityChanges((), (f"--data-path: {before} until now, {now} from here on",), ())


def test_blends_are_compared_by_their_weights_and_order(sets):
    a, b = sets["a"], sets["other"]
    blend = on("--data-path", "30", a, "70", b)
    assert compared(blend, on("--data-path", "0.3", a, "0.7", b)).refused == ()
    assert compared(blend, on("--data-path", "3", sets["moved"], "7", b)).refused == ()
    [line] = compared(blend, on("--data-path", "40", a, "60", b)).refused
    assert line == "--data-path: weights 0.3 0.7 in that run, 0.4 0.6 in this command"
    assert "weights" in compared(blend, on("--data-path", a, b)).refused[0]
    assert len(compared(on("--data-path", a, b), on("--data-path", b, a)).refused) == 2
    assert compared(on("--data-path", a, b), on("--data-path", a)).refused == (
        "--data-path: 2 data sets in that run, 1 in this command",
    )


def test_the_data_of_each_split_are_compared(sets):
    a, b, moved = sets["a"], sets["other"], sets["moved"]
    apart = (f"--train-data-path {a} --valid-data-path {b}", (a, b))
    assert compared(apart, apart) == IdentityChanges((), (), ())
    now = (f"--train-data-path {moved} --valid-data-path {b}", (moved, b))
    assert compared(apart, now).refused == () and len(compared(apart, now).noticed) == 1
    now = (f"--train-data-path {a} --valid-data-path {a}", (a,))
    assert compared(apart, now).names == "--valid-data-path"
    now = (f"--train-data-path {a} --valid-data-path {b} --test-data-path {a}", (a, b))
    assert compared(apart, now).names == "--test-data-path"
    assert "--train-data-path" in compared(apart, on("--data-path", a)).names


def test_tokenizer_and_template_are_compared_by_hash(sets, tmp_path):
    before = compute_identity(on_a(sets), opened(sets["a"]))
    after = compute_identity(on_a(sets), opened(sets["a"]), tokenizer_sha256="f" * 64)
    assert compare_identity(record_of(before), after).names == "tokenizer"
    after = {**before, "template": ["qwen " + "c" * 64]}
    assert compare_identity(record_of(before), after).names == "template"
    after = compute_identity(on_a(sets), opened(sets["a"]), vocabulary=301)
    assert compare_identity(record_of(before), after).refused == (), "--vocab-size is given"


def test_missing_data_is_not_compared(sets):
    """A dry run, where the files are not here yet."""
    before = compute_identity(on_a(sets), opened(sets["a"]))
    assert compare_identity(record_of(before), compute_identity(on_a(sets))) == IdentityChanges((), (), ())


# Records of older versions.

OLD_IDENTITY = {
    "--num-layers": 4,
    "--hidden-size": 64,
    "--num-attention-heads": 4,
    "--data-path": ["none"],
    "--train-data-path": [],
    "--split": "100,0,0",
    "--seq-length": 32,
    "--seed": 1234,
    "--load": None,
    "--finetune": False,
}


def old_record(**changes: Any) -> RunMetadata:
    """As version 1 reads from a run.json that was written by hand."""
    return RunMetadata(TrainingProgress(3, 12), {**OLD_IDENTITY, **changes}, {"world_size": 1})


def test_an_old_record_is_compared_on_the_keys_that_it_has(sets):
    now = compute_identity(on_a(sets), opened(sets["a"]))
    here = {"--data-path": [str(sets["a"])]}
    changes = compare_identity(old_record(**here), now)
    assert changes.refused == ()
    [notice] = changes.notices(Path("iter_0000003"))
    assert notice.startswith("iter_0000003/run.json was written by another version") and "tokenizer" in notice
    assert is_same_run(old_record(**here), now)
    for key, value in {
        "--seed": 5,
        "--split": "90,10,0",
        "--data-path": ["x"],
        "--load": "x",
        "--num-layers": 2,
    }.items():
        assert compare_identity(old_record(**{**here, key: value}), now).names == key
        assert not is_same_run(old_record(**{**here, key: value}), now)


def test_the_arguments_in_an_old_record_are_compared_too(sets):
    arguments = on_a(sets)
    record = dataclasses.replace(
        old_record(**{"--data-path": [str(sets["a"])]}),
        arguments=json.loads(json.dumps(dataclasses.asdict(arguments), default=sorted)),
    )
    assert compare_identity(record, compute_identity(arguments)).refused == ()
    changes = compare_identity(
        record, compute_identity(on_a(sets, "--no-shuffle --rotary-base 5 --lr 2e-3"), opened(sets["a"]))
    )
    assert changes.names == "--rotary-base, --no-shuffle" and mentions(changes.noticed, "--lr")
    assert "contents of --data-path" in changes.unknown and "--no-shuffle" not in changes.unknown


def test_keys_of_a_newer_version_do_not_keep_a_record_from_being_read(tmp_path):
    record_of({"--seed": 1, "--of-the-future": 3}).write(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "future": [1]}))
    record = RunMetadata.read(tmp_path)
    assert record is not None and record.identity_version == VERSION
    assert compare_identity(record, compute_identity(tiny_arguments("--seed 1"))).refused == ()


@pytest.mark.parametrize("value", [3, None, ["x"], [3], {"x": 1}, [[]], "none"])
@pytest.mark.parametrize("key", ["contents of --data-path", "--split", "--load", "--data-path", "template", "--lr"])
def test_an_identity_with_wrong_types_is_no_traceback(sets, key, value):
    now = compute_identity(on_a(sets), opened(sets["a"]))
    for version in (1, VERSION):
        compare_identity(
            RunMetadata(TrainingProgress(), {**now, key: value}, {}, identity_version=version), now
        ).notices(Path())


def test_pruning_uses_the_same_comparison(sets, tmp_path):
    """Own checkpoints with another learning rate or a moved path are removed; those of another run stay."""
    folder = RunCheckpoints(tmp_path)
    own = compute_identity(on_a(sets), opened(sets["a"]))
    written = {
        1: record_of({**own, "--lr": 5.0}),
        2: record_of({**own, "--no-shuffle": True}),
        3: old_record(**{"--data-path": [str(sets["a"])]}),
        4: old_record(**{"--data-path": [str(sets["a"])], "--seed": 77}),
        5: record_of(own),
        6: record_of(own),
    }
    for iteration, record in written.items():
        folder.iteration_path(iteration).mkdir()
        record.write(folder.iteration_path(iteration))
        seal_checkpoint(folder.iteration_path(iteration))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("6\n")
    folder.prune(1, own)
    assert sorted(int(path.name[5:]) for path in folder.complete_checkpoints()) == [2, 4, 6]


# Runs.


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with `data`, the `save` of a run of three iterations with a checkpoint at 2, and its export `hf`."""
    folder = tmp_path_factory.mktemp("finished")
    write_files(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        start(patch, folder, "--save-hf", str(folder / "hf"))
    return folder


def start(monkeypatch, folder: Path, *flags: str, save: Path | None = None, run: str = RUN) -> dict[int, dict]:
    """Start the command of `finished` with further flags; the records of its --save."""
    save = save or folder / "save"
    words = ("--train-iters", "3", "--save-interval", "2", "--eval-iters", "0", "--data-path", str(folder / "data"))
    pretrain(monkeypatch, *words, "--save", str(save), *flags, run=run)
    return train_records(save / "run")


@pytest.fixture
def stopped(finished, tmp_path) -> Path:
    """A copy of it as a stop after the second iteration would have left it."""
    folder = tmp_path / "stopped"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "save" / "iter_0000003")
    shutil.rmtree(folder / "save" / "run")
    (folder / "save" / "latest_checkpointed_iteration.txt").write_text("2\n")
    return folder


def refused(monkeypatch, folder: Path, *flags: str, match: str, run: str = RUN) -> None:
    before = sorted(path.name for path in (folder / "save").iterdir())
    with pytest.raises(CheckpointError, match=match):
        start(monkeypatch, folder, *flags, run=run)
    assert sorted(path.name for path in (folder / "save").iterdir()) == before


def test_changes_of_a_run_are_refused_before_anything_is_trained(stopped, monkeypatch):
    here = ("--data-path", str(stopped / "data"))
    refused(monkeypatch, stopped, *here, "--no-shuffle", match=r"another run.*--no-shuffle")
    refused(monkeypatch, stopped, *here, "--loss-normalization", "sample", match=r"token in that run, sample in this")
    refused(monkeypatch, stopped, *here, "--rotary-base", "5", match=r"--rotary-base: 1000000.0 in that run, 5.0")
    write_files(stopped / "data", seed=1)
    refused(monkeypatch, stopped, *here, match=r"--data-path .*its files contain other data")


def test_moved_data_and_another_length_are_honoured_with_a_notice(stopped, finished, monkeypatch, capsys):
    records = start(monkeypatch, stopped, "--train-iters", "4")
    assert list(records) == [3, 4]
    assert records[3]["loss"] == train_records(finished / "save" / "run")[3]["loss"]
    said = capsys.readouterr().out.splitlines()
    assert "--train-iters: 3 until now, 4 from here on" in said
    assert f"--data-path: {finished / 'data'} until now, {stopped / 'data'} from here on" in said
    newest = RunMetadata.read(stopped / "save" / "iter_0000004")
    assert newest is not None and newest.identity_version == VERSION


def test_resuming_from_load_compares_as_well(stopped, monkeypatch, tmp_path):
    """Without --finetune the iteration and the place in the data go on, so the data and the order must be the run's."""
    flags, new = ("--load", str(stopped / "save")), tmp_path / "new"
    with pytest.raises(CheckpointError, match=r"at iteration 2 of another run .*--no-shuffle"):
        start(monkeypatch, stopped, *flags, "--no-shuffle", save=new)
    assert list(start(monkeypatch, stopped, *flags, save=new)) == [3]


def test_the_folder_of_load_may_move_but_not_change(stopped, monkeypatch, tmp_path, capsys):
    """A Hugging Face folder: its config.json counts through the model's fields, its weights by a fingerprint."""
    run = re.sub(r"--(num-layers.*init-method-std \S+)", "", RUN)
    assert "--num-layers" not in run
    save, hf, moved = tmp_path / "save", stopped / "hf", stopped / "moved"

    def go_on(load: Path, iterations: int) -> list[int]:
        flags = ("--load", str(load), "--train-iters", str(iterations))
        return list(start(monkeypatch, stopped, *flags, save=save, run=run))

    assert go_on(hf, 1) == [1]
    shutil.copytree(hf, moved)
    assert go_on(moved, 2) == [1, 2]
    assert f"--load: {hf} until now, {moved} from here on" in capsys.readouterr().out
    shutil.move(moved, tmp_path / "away")
    assert go_on(moved, 3) == [1, 2, 3], "once started, a run does not need its --load"
    shutil.move(tmp_path / "away", moved)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    with pytest.raises(CheckpointError, match=r"--rotary-base: 1000000.0 in that run, 5.0 in this command"):
        go_on(moved, 4)
    weights = bytearray((hf / "model.safetensors").read_bytes())
    weights[-64:] = bytes(64)
    (hf / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"another run .*differ in --load\)"):
        go_on(hf, 4)


def test_a_run_json_of_an_older_version_goes_on_with_one_notice(stopped, finished, monkeypatch, capsys):
    path = stopped / "save" / "iter_0000002" / "run.json"
    content = json.loads(path.read_text())
    identity = {key: content["identity"][key] for key in OLD_IDENTITY} | {"--split": "80,20,0"}
    del content["identity_version"], content["arguments"]["shape_notice"]
    path.write_text(json.dumps({**content, "identity": identity}))
    seal_checkpoint(path.parent)
    assert list(start(monkeypatch, stopped, "--data-path", str(finished / "data"))) == [3]
    said = [line for line in capsys.readouterr().out.splitlines() if "until now" in line or "another version" in line]
    assert len(said) == 1 and "not compared" in said[0]


@pytest.mark.long
def test_a_checkpoint_of_an_earlier_version_goes_on(stopped, finished, monkeypatch, tmp_path, capsys):
    """Made by this program as it was at commit 9055fb5, from its history."""
    packed = subprocess.run(["git", "archive", "9055fb5"], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        pytest.skip("needs the history of git up to 9055fb5, which is not here")
    (tmp_path / "old.tar").write_bytes(packed.stdout)
    with tarfile.open(tmp_path / "old.tar") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    save, data = tmp_path / "checkpoint", str(finished / "data")
    words = ["--save-interval", "2", "--eval-iters", "0", "--data-path", data, "--save", str(save)]
    command = [sys.executable, "pretrain_gpt.py", *RUN.split(), *words, "--train-iters", "4"]
    environment = {"PYTHONPATH": str(tmp_path / "old"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path / "old", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    straight = train_records(save / "run")
    shutil.rmtree(save / "iter_0000004")
    shutil.rmtree(save / "run")
    (save / "latest_checkpointed_iteration.txt").write_text("2\n")
    pretrain(monkeypatch, *words, "--train-iters", "4")
    resumed = train_records(save / "run")
    assert list(resumed) == [3, 4]
    assert [resumed[i]["loss"] for i in resumed] == [straight[i]["loss"] for i in resumed]
    assert sum("another version" in line for line in capsys.readouterr().out.splitlines()) == 1
    with pytest.raises(CheckpointError, match=r"differ in --no-shuffle\)"):
        pretrain(monkeypatch, *words, "--no-shuffle", "--train-iters", "5")
