"""--load and --save name one folder: the run goes on, and all checkpoints in the folder remain those of one run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_arguments

from mindspeed_llm.devices import apply_patches

apply_patches("cpu")  # before megatron-core is imported
from mindspeed_llm.checkpoints import (  # noqa: E402
    RunCheckpoints,
    RunMetadata,
    StartPoint,
    TrainingProgress,
    checkpoint_layout,
    compute_identity,
    find_start_point,
    identity_to_record,
    set_aside_later_checkpoints,
)
from mindspeed_llm.checkpoints.integrity import seal_checkpoint  # noqa: E402
from mindspeed_llm.storage.checkpoint_directory import LatestIterationFile  # noqa: E402

LAYOUT = checkpoint_layout(tiny_arguments().parallel, 1, "cpu")


def begun(flags: str) -> tuple[StartPoint, dict]:
    """Where a command starts, and the identity that its checkpoints have."""
    arguments = tiny_arguments(flags)
    identity = compute_identity(arguments)
    start = find_start_point(arguments.checkpoint, arguments.training.train_iters, LAYOUT, identity)
    return start, identity_to_record(identity, start)


def saved(folder: RunCheckpoints, iteration: int, identity: dict) -> None:
    """A checkpoint without tensors, made the newest."""
    path = folder.iteration_path(iteration)
    path.mkdir(parents=True)
    RunMetadata(TrainingProgress(iteration, iteration), identity, LAYOUT, identity_version=2).write(path)
    seal_checkpoint(path)
    LatestIterationFile(folder.path).write(iteration)


@pytest.mark.parametrize("first", ["", "--load {source} --finetune"])
def test_a_run_that_loads_its_own_folder_remains_that_run(tmp_path: Path, first: str) -> None:
    source, folder = RunCheckpoints(tmp_path / "source"), RunCheckpoints(tmp_path / "save")
    saved(source, 1, compute_identity(tiny_arguments("--seed 7")))
    plain = f"--save {folder.path} {first.format(source=source.path)}"
    itself = f"--save {folder.path} --load {folder.path}"
    _, identity = begun(plain)
    for iteration in (2, 4):
        saved(folder, iteration, identity)

    start, again = begun(itself)
    assert (start.kind, start.progress.iteration, start.optimizer) == ("continue", 4, True)
    assert again == {**identity, **again} and again["--load"] == identity["--load"]
    saved(folder, 6, again)
    assert begun(plain)[0].progress.iteration == 6, "the first command goes on as well"

    LatestIterationFile(folder.path).write(4)
    start, again = begun(itself)
    line = set_aside_later_checkpoints(folder.path, start, again)
    assert line is not None and "iter_0000006" in line
    saved(folder, 5, again)
    folder.prune(1, again)
    assert [one.name for one in folder.complete_checkpoints()] == ["iter_0000005"], "the earlier ones are this run's"


def test_leaving_the_optimizer_is_another_start(tmp_path: Path) -> None:
    """It must not be repeated by each restart of the command."""
    folder = RunCheckpoints(tmp_path)
    saved(folder, 4, begun(f"--save {tmp_path}")[1])
    command = f"--save {tmp_path} --load {tmp_path} --no-load-optim"
    start, identity = begun(command)
    assert (start.kind, start.progress.iteration, start.optimizer) == ("load", 4, False)
    saved(folder, 6, identity)
    assert begun(command)[0].optimizer
