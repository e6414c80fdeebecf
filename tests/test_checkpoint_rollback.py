"""Which checkpoints of --save belong to a run: --keep-last, a tracker set back, or gone, and what a kill leaves.

Most of this is about names in a folder, so the checkpoints are small ones without tensors.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from saving_program import in_a_child, kill_at
from tiny_runs import pretrain, train_records, write_files

from mindspeed_llm.devices import apply_patches
from mindspeed_llm.errors import CheckpointError

apply_patches("cpu")  # before what imports megatron-core
from mindspeed_llm.checkpoints import (  # noqa: E402
    RunCheckpoints,
    RunMetadata,
    StartPoint,
    TrainingProgress,
    find_damage,
    set_aside_later_checkpoints,
)
from mindspeed_llm.checkpoints.integrity import seal_checkpoint  # noqa: E402
from mindspeed_llm.storage.checkpoint_directory import parse_iteration  # noqa: E402

TRACKER = "latest_checkpointed_iteration.txt"
OWN, OTHER = {"--seed": 1}, {"--seed": 2}


def written(path: Path, iteration: int, identity: dict = OWN) -> Path:
    """A checkpoint's folder with a record and hashes, and a file that says which one it is."""
    path.mkdir(parents=True)
    RunMetadata(TrainingProgress(iteration), identity, {}).write(path)
    (path / "weights").write_text(f"{identity} {iteration}")
    seal_checkpoint(path)
    return path


def folder_of(path: Path, iterations: tuple[int, ...] = (), identity: dict = OWN) -> RunCheckpoints:
    """--save with checkpoints of a run; the tracker names the last."""
    folder = RunCheckpoints(path)
    for iteration in iterations:
        save(folder, iteration, identity)
    return folder


def save(folder: RunCheckpoints, iteration: int, identity: dict = OWN, keep: int | None = None) -> None:
    """What a save does to the folder."""
    folder.clear_leftovers()
    saving = written(folder.path / f"iter_{iteration:07d}.saving", iteration, identity)
    folder.publish(saving, iteration)
    if keep is not None:
        folder.prune(keep, identity)


def continued(folder: RunCheckpoints, identity: dict = OWN) -> str | None:
    """What a start does to the folder that continues from it."""
    newest = folder.newest()
    assert newest is not None
    return set_aside_later_checkpoints(folder.path, start_from(newest), identity)


def start_from(checkpoint: Path, kind: str = "continue", iteration: int | None = None) -> StartPoint:
    number = parse_iteration(checkpoint) if iteration is None else iteration
    return StartPoint(kind, checkpoint, None, TrainingProgress(number or 0), True, True, "")


def numbers(path: Path) -> list[int]:
    """Iterations of the checkpoints right inside a folder."""
    return sorted(parse_iteration(one) or 0 for one in path.glob("iter_*"))


def aside(path: Path) -> list[list[int]]:
    return [numbers(one) for one in sorted(path.glob("set_aside_*"))]


@pytest.mark.parametrize("keep", [1, 2])
def test_keep_last_keeps_the_newest_line(tmp_path: Path, keep: int) -> None:
    """The tracker is set back to 3 of 12: what is saved from then on stays, though there are higher numbers."""
    folder = folder_of(tmp_path, (3, 6, 9, 12))
    (tmp_path / TRACKER).write_text("3\n")
    line = continued(folder)
    assert line is not None and "iter_0000006, iter_0000009, iter_0000012 are later than iteration 3" in line
    assert "\n" not in line
    for iteration in (4, 5, 6):
        save(folder, iteration, keep=keep)
        newest = folder.newest()
        assert newest is not None and parse_iteration(newest) == iteration and find_damage(newest) == []
    assert numbers(tmp_path) == [4, 5, 6][-keep:] and aside(tmp_path) == [[6, 9, 12]]
    [moved] = tmp_path.glob("set_aside_*")
    loadable = RunCheckpoints(moved).latest()
    assert loadable is not None and loadable.name == "iter_0000012" and find_damage(loadable) == []


@pytest.mark.parametrize("keep", [1, 2])
def test_what_the_tracker_names_is_never_removed(tmp_path: Path, keep: int) -> None:
    """Even where the later ones were left in place, as an earlier version of this program did."""
    folder = folder_of(tmp_path, (3, 6, 9, 12))
    (tmp_path / TRACKER).write_text("3\n")
    save(folder, 4, keep=keep)
    assert numbers(tmp_path) == [3, 4, 6, 9, 12][-3 - keep :]
    (tmp_path / TRACKER).write_text("of no use\n")
    folder.prune(1, OWN)
    assert numbers(tmp_path) == [3, 4, 6, 9, 12][-3 - keep :], "nothing tells which one is the newest"


def test_of_a_tracker_whose_checkpoint_is_gone_the_one_before_is_used(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, (3, 6, 9, 12))
    (tmp_path / TRACKER).write_text("6\n")
    shutil.rmtree(tmp_path / "iter_0000006")
    newest = folder.newest()
    assert newest is not None and newest.name == "iter_0000003", "9 and 12 may be of another branch"
    line = continued(folder)
    assert line is not None and aside(tmp_path) == [[9, 12]] and (tmp_path / TRACKER).read_text() == "3\n"
    shutil.rmtree(tmp_path / "iter_0000003")
    save(folder, 5)
    (tmp_path / TRACKER).write_text("4\n")
    with pytest.raises(CheckpointError, match="names iter_0000004, which does not exist"):
        folder.newest()


def test_damaged_newer_ones_are_set_aside(tmp_path: Path) -> None:
    """The run has fallen back to 6. Of 9 the record is damaged: it is taken for this run's."""
    folder = folder_of(tmp_path, (3, 6, 9, 12))
    (tmp_path / "iter_0000009" / "run.json").write_text("{")
    (tmp_path / "iter_0000012" / "weights").unlink()
    set_aside_later_checkpoints(tmp_path, start_from(tmp_path / "iter_0000006"), OWN)
    assert (tmp_path / TRACKER).read_text() == "6\n"
    save(folder, 7, keep=2)
    assert numbers(tmp_path) == [6, 7] and aside(tmp_path) == [[9, 12]]


def test_a_missing_tracker_beside_checkpoints_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert folder.newest() is None
    for iteration in (3, 6):
        save(folder, iteration)
        (tmp_path / TRACKER).unlink()
        with pytest.raises(CheckpointError, match=rf"{TRACKER}: missing, but there are checkpoints .*{iteration} for"):
            folder.newest()


def test_other_runs_checkpoints_are_never_removed(tmp_path: Path) -> None:
    """--save names the folder of --load, and --finetune starts at 0: 6 is where it starts from, 2 and 4 are older."""
    folder = folder_of(tmp_path, (2, 4, 6), OTHER)
    start = start_from(tmp_path / "iter_0000006", "load", 0)
    assert set_aside_later_checkpoints(tmp_path, start, OWN) is None
    for iteration in (2, 6):  # 6: after a signal, say; a save interval that hits it is refused
        save(folder, iteration, OWN, keep=1)
        newest = folder.newest()
        assert newest is not None and (newest / "weights").read_text() == f"{OWN} {iteration}"
    assert numbers(tmp_path) == [4, 6] and sorted(aside(tmp_path)) == [[2], [6]]
    for moved in tmp_path.glob("set_aside_*/iter_*"):
        assert find_damage(moved) == [] and str(OTHER) in (moved / "weights").read_text()


def test_a_second_start_from_anothers_weights_leaves_the_first_branch(tmp_path: Path) -> None:
    """Somebody sets the tracker back to the weights that the run started from: it starts anew from them."""
    folder = folder_of(tmp_path, (6,), OTHER)
    for iteration in (2, 4, 8):
        save(folder, iteration)
    (tmp_path / TRACKER).write_text("6\n")
    line = set_aside_later_checkpoints(tmp_path, start_from(tmp_path / "iter_0000006", "load", 0), OWN)
    assert line is not None and numbers(tmp_path) == [6] and aside(tmp_path) == [[2, 4, 8]]


def test_a_tracker_that_is_written_after_a_stopped_save_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, (3, 6))
    written(tmp_path / "iter_0000009", 9)
    (tmp_path / f"{TRACKER}.tmp").write_text("9\n")
    assert folder.newest() == tmp_path / "iter_0000009"
    os.utime(tmp_path / f"{TRACKER}.tmp", (1, 1))
    (tmp_path / TRACKER).write_text("3\n")
    assert folder.newest() == tmp_path / "iter_0000003"
    continued(folder)
    assert aside(tmp_path) == [[6, 9]] and not (tmp_path / f"{TRACKER}.tmp").exists()


def test_the_same_second_makes_two_folders(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, (1, 2, 3))
    for iteration in (3, 2):
        folder.set_aside([tmp_path / f"iter_{iteration:07d}"])
    assert numbers(tmp_path) == [1] and sorted(aside(tmp_path)) == [[2], [3]]


def everywhere(path: Path) -> list[str]:
    """What all checkpoints of a folder hold, those set aside, replaced or being written too."""
    return sorted(one.read_text() for one in path.rglob("weights") if ".saving" not in one.parent.name)


def killed_at_every_operation(folder: Path, original: Path, work: Callable[[RunCheckpoints], None]):
    """`work` on copies of `original`, killed at its first, second, … file operation, until it gets through."""
    for count in range(1, 100):
        place = folder / str(count)
        shutil.copytree(original, place)

        def to_be_killed(place: Path = place, count: int = count) -> None:
            kill_at(count, place)
            work(RunCheckpoints(place))

        through = in_a_child(to_be_killed)
        yield place
        if through:
            return
    pytest.fail("it does not end")


def test_setting_aside_is_killed_at_every_operation(tmp_path: Path) -> None:
    """Killed at any moment, the next start is the same, and nothing is lost."""
    folder_of(tmp_path / "original", (3, 6, 9, 12))
    (tmp_path / "original" / TRACKER).write_text("3\n")
    (tmp_path / "original" / "iter_0000012" / "weights").write_text("damaged")
    before, states = everywhere(tmp_path / "original"), set()
    for place in killed_at_every_operation(tmp_path, tmp_path / "original", continued):
        folder = RunCheckpoints(place)
        states.add((tuple(numbers(place)), len(aside(place))))
        newest = folder.newest()
        assert newest is not None and newest.name == "iter_0000003" and everywhere(place) == before
        continued(folder)
        save(folder, 4, keep=1)
        assert numbers(place) == [4] and sorted(itertools.chain(*aside(place))) == [6, 9, 12]
    assert {((3, 6, 9, 12), 0), ((3, 6, 9), 1), ((3, 6), 1), ((3,), 1)} <= states


def test_a_fallback_is_killed_at_every_operation(tmp_path: Path) -> None:
    folder_of(tmp_path / "original", (3, 6, 9))
    before = everywhere(tmp_path / "original")

    def fall_back(folder: RunCheckpoints) -> None:
        set_aside_later_checkpoints(folder.path, start_from(folder.path / "iter_0000003"), OWN)

    for place in killed_at_every_operation(tmp_path, tmp_path / "original", fall_back):
        folder = RunCheckpoints(place)
        assert folder.newest() in (place / "iter_0000003", place / "iter_0000009") and everywhere(place) == before
        fall_back(folder)
        assert folder.newest() == place / "iter_0000003" and sorted(itertools.chain(*aside(place))) == [6, 9]


@pytest.mark.parametrize("first", [(), (3,)], ids=["the first", "a later one"])
def test_publishing_is_killed_at_every_operation(tmp_path: Path, first: tuple[int, ...]) -> None:
    """The first save of all, too: with its checkpoint in place but no tracker yet, the next start continues from it."""
    (tmp_path / "original").mkdir()
    folder_of(tmp_path / "original", first)
    seen = set()
    for place in killed_at_every_operation(tmp_path, tmp_path / "original", lambda folder: save(folder, 6, keep=1)):
        folder = RunCheckpoints(place)
        newest = folder.newest()
        seen.add((newest.name if newest else None, (place / TRACKER).exists()))
        if newest is not None:
            assert find_damage(newest) == []
            continued(folder)
        save(folder, 7, keep=1)
        assert numbers(place) == [7] and aside(place) == [], "a checkpoint that the tracker was about to name is used"
    before = {("iter_0000003", True)} if first else {(None, False), ("iter_0000006", False)}
    assert seen == before | {("iter_0000006", True)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_files(tmp_path_factory.mktemp("data") / "data"))


def test_a_run_that_is_set_back_goes_on_from_there(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the issue has it: six iterations, back to the second, on with --keep-last, stopped on the way."""
    from mindspeed_llm.entry_point import run_program

    root = tmp_path / "checkpoint"
    flags = ("--data-path", data, "--save", str(root), "--save-interval", "2", "--eval-iters", "0")
    pretrain(monkeypatch, *flags)
    first = train_records(root / "run")
    (root / TRACKER).write_text("2\n")
    (root / "run" / "metrics.jsonl").unlink()
    real, saves = RunCheckpoints.publish, []

    def publish_and_stop(folder: RunCheckpoints, saving: Path, iteration: int) -> None:
        real(folder, saving, iteration)
        saves.append(iteration)
        if iteration == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(RunCheckpoints, "publish", publish_and_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(stopping, *flags, "--keep-last", "1")
    assert "set aside: iter_0000004, iter_0000006 are later" in capsys.readouterr().err
    assert saves == [4] and numbers(root) == [2, 4] and aside(root) == [[4, 6]]
    assert not list(root.glob("lease*")), "released after an error"
    pretrain(monkeypatch, *flags, "--keep-last", "1")
    assert "the run is complete" not in capsys.readouterr().out
    again = train_records(root / "run")
    assert list(again) == [3, 4, 5, 6] and numbers(root) == [6]
    assert [again[number]["loss"] for number in again] == [first[number]["loss"] for number in again]

    (root / TRACKER).unlink()
    status = run_program(lambda: pretrain(monkeypatch, *flags), "pretrain_gpt.py")
    said = capsys.readouterr().err
    assert status == 2 and "missing, but there are checkpoints (iter_0000006)" in said
    assert numbers(root) == [6] and not list(root.glob("lease*"))
