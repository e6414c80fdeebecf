"""Kill a save at each of its file operations; started by test_checkpoints.py.

For n = 1, 2, 3, … a forked child saves a new checkpoint (or replaces an older one) and kills itself with SIGKILL at
its n-th operation on the checkpoint directory, until a save completes. A second child then inspects the remaining
files like a restarted run and saves once more. The children are forked, because importing torch and megatron-core
takes seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def kill_at(count: int, folder: Path) -> None:
    """Kill this process with SIGKILL when it begins its `count`-th operation inside `folder`."""
    process, left = os.getpid(), [count]

    def count_operation(event: str, arguments: tuple) -> None:
        if event not in OPERATIONS or os.getpid() != process or not str(arguments[0]).startswith(str(folder)):
            return
        left[0] -= 1
        if left[0] == 0:
            os.kill(process, signal.SIGKILL)

    sys.addaudithook(count_operation)


def run_in_child(work, *arguments) -> bool:
    """Run `work` in a forked child; return False if it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def started_job():
    import torch
    from tiny import tiny_arguments
    from tiny_model import derived_of

    from mindspeed_llm.devices import Device, select_device
    from mindspeed_llm.training import init_distributed
    from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer

    torch.set_num_threads(1)
    arguments = tiny_arguments("--num-layers 1 --hidden-size 16 --ffn-hidden-size 16")
    init_distributed(arguments, select_device("cpu"))
    return setup_model_and_optimizer(arguments, Device("cpu"), derived_of(arguments, 3))


def save(job, place: Path, iteration: int, value: float) -> None:
    import torch

    from mindspeed_llm.checkpoints import RunCheckpoints, RunMetadata, TrainingProgress, begin_save

    with torch.no_grad():
        next(job.chunks[0].parameters()).fill_(value)
    record = RunMetadata(TrainingProgress(iteration), {}, {}, has_optimizer=False, has_rng=False)
    begin_save(RunCheckpoints(place), job.state, record, keep_last=1).finish()


def first_save(place: Path) -> None:
    save(started_job(), place, 1, 1.0)


def killed_save(place: Path, iteration: int, count: int) -> None:
    job = started_job()
    kill_at(count, place)
    save(job, place, iteration, 2.0)


def inspect_and_resume(place: Path, answer: Path) -> None:
    from mindspeed_llm.checkpoints import (
        RunCheckpoints,
        StartPoint,
        TrainingProgress,
        find_damage,
        load_weights,
        set_aside_later_checkpoints,
    )
    from mindspeed_llm.storage.checkpoint_directory import parse_iteration

    job = started_job()
    left = RunCheckpoints(place).newest()
    assert left is not None
    damage = find_damage(left)
    load_weights(left, job.state)
    value = float(next(job.chunks[0].parameters()).detach().flatten()[0])
    start = StartPoint("continue", left, None, TrainingProgress(parse_iteration(left) or 0), False, False, "")
    set_aside_later_checkpoints(place, start, {})
    save(job, place, 3, 3.0)
    names = sorted(path.name for path in place.iterdir() if not path.name.startswith("set_aside"))
    aside = sorted(path.name for path in place.glob("set_aside_*/iter_*"))
    found = {"left": left.name, "damage": damage, "value": value, "names_after": names, "aside_after": aside}
    answer.write_text(json.dumps(found))


def main(folder: Path, step: int) -> None:
    from mindspeed_llm.devices import apply_patches

    apply_patches("cpu")
    from megatron.core.dist_checkpointing.strategies import filesystem_async  # noqa: F401 - once for all children

    run_in_child(first_save, folder / "first")
    results: list[dict] = []
    known: dict[str, dict] = {}
    published = 1
    for again in (False, True):
        # Replacing an older checkpoint differs from saving a new one only in the last operations.
        for count in range(published - 2 if again else 1, 200, step):
            place, answer = folder / f"{again}_{count}", folder / "answer.json"
            shutil.copytree(folder / "first", place)
            through = run_in_child(killed_save, place, 1 if again else 2, count)
            names = sorted(path.name for path in place.iterdir())
            if not again and "iter_0000002" not in names:
                published = count
            inside = str(sorted((str(path.relative_to(place)), path.stat().st_size) for path in place.rglob("*")))
            if inside not in known:
                run_in_child(inspect_and_resume, place, answer)
                known[inside] = json.loads(answer.read_text())
            results.append({"again": again, "through": through, "at": names, **known[inside]})
            if through:
                break
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
