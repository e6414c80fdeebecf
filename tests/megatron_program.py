"""Run cases of megatron_cases.py in Megatron, or in our own loop.

    megatron_program.py FOLDER own CASE...
    megatron_program.py FOLDER SITE SCRIPT CASE...
    megatron_program.py FOLDER SITE SCRIPT mindspeed=DIR CASE...

All ranks of all cases are forks of this process. Each case writes its losses and gradient norms to FOLDER.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

from forked_ranks import run_forked
from megatron_cases import CASES, MegatronCase, megatron_flags, own_flags

IMPORT_LINE, MINDSPEED_LINE = "import mindspeed_llm.megatron_adaptor\n", "import mindspeed.megatron_adaptor\n"


def run_own_loop(folder: Path, names: list[str]) -> None:
    """Save the weights that all runs start with, then run our own loop for each case."""
    import pretrain_gpt
    from mindspeed_llm.devices import apply_patches

    apply_patches("cpu")
    # Imported before the forks, so that they need not.
    import mindspeed_llm.training.run_training  # noqa: F401

    def train(case: MegatronCase, *flags: str) -> None:
        sys.argv = ["pretrain_gpt.py", *own_flags(case, folder), *flags]
        pretrain_gpt.main()

    if not (folder / "start").exists():
        start = functools.partial(train, CASES["tp1"], "--train-iters", "1", "--eval-iters", "0", "--save")
        run_forked("start", 1, lambda: start(str(folder / "start")), folder)
    for name in names:
        start_of = folder / "saved" / CASES[name].loads if CASES[name].finetunes else folder / "start"
        flags = ("--load", str(start_of), "--finetune", "--run-dir", str(folder / "own" / name))
        run_forked(f"own {name}", CASES[name].ranks, functools.partial(train, CASES[name], *flags), folder)


def run_megatron(folder: Path, site: Path, script: Path, names: list[str]) -> None:
    """Run the script for each case with Megatron from `site`."""
    import megatron_on_cpu

    megatron_on_cpu.use_host(site)
    # Imported before the forks, so that they need not.
    import mindspeed_llm.megatron.packed_run
    import mindspeed_llm.tokenization.hugging_face_tokenizer  # noqa: F401

    with contextlib.suppress(ImportError):
        import transformers.models.auto.tokenization_auto  # noqa: F401

    for name in names:
        path = write_script(folder, name, script)
        work = functools.partial(train_in_megatron, CASES[name], folder, path)
        run_forked(name, CASES[name].ranks, work, folder)


def run_under_mindspeed(folder: Path, site: Path, script: Path, mindspeed: Path, names: list[str]) -> None:
    """Run the script for each case with Megatron from `site` and MindSpeed from `mindspeed`.

    MindSpeed reads the command line when it patches Megatron, so each rank imports both.
    """
    import npu_operators

    # Imported before the forks, so that they need not.
    import mindspeed_llm.megatron.mindspeed_versions
    import mindspeed_llm.tokenization.hugging_face_tokenizer  # noqa: F401

    npu_operators.install()
    for name in names:
        path = write_script(folder, name, script)
        work = functools.partial(train_under_mindspeed, CASES[name], folder, path, mindspeed, site)
        run_forked(name, CASES[name].ranks, work, folder)


def write_script(folder: Path, name: str, script: Path) -> Path:
    """Copy the script for a case, with its import lines."""
    case = CASES[name]
    lines = {"before": [MINDSPEED_LINE, IMPORT_LINE], "after": [IMPORT_LINE, MINDSPEED_LINE]}
    path = folder / f"{name}.py"
    path.write_text("".join(lines.get(case.mindspeed, [IMPORT_LINE] * case.imports)) + script.read_text())
    return path


def train_under_mindspeed(case: MegatronCase, folder: Path, script: Path, mindspeed: Path, site: Path) -> None:
    """Run the script on this rank under MindSpeed's adaptor, and count the calls of torch_npu's operators."""
    import mindspeed_on_cpu

    def record() -> None:
        record_steps(folder / f"{script.stem}.json")
        if not case.boundaries:
            forget_boundaries()

    calls = mindspeed_on_cpu.prepare(mindspeed, site, record)
    try:
        run_script(case, folder, script)
    finally:  # --exit-interval ends the process
        (folder / f"{script.stem}.{os.environ['RANK']}.calls.json").write_text(json.dumps(calls))


def train_in_megatron(case: MegatronCase, folder: Path, script: Path) -> None:
    """Run the script on this rank, and record what Megatron logs."""
    record_steps(folder / f"{script.stem}.json")
    if not case.boundaries:
        forget_boundaries()
    run_script(case, folder, script)


def run_script(case: MegatronCase, folder: Path, script: Path) -> None:
    """Run the script, or our module with it, with the command line of a case."""
    sys.argv = [str(script), *megatron_flags(case, folder)]
    if not case.module:
        runpy.run_path(str(script), run_name="__main__")
        return
    from mindspeed_llm.megatron.__main__ import main

    sys.argv.insert(0, "mindspeed_llm.megatron")
    sys.path.insert(0, "")  # as `python -m` does; the module puts the folder of the script there
    main()


def record_steps(path: Path) -> None:
    """Let the last rank write loss and norm of each step, and the loss of each evaluation, as Megatron has them."""
    from megatron.training import training

    steps: dict[str, Any] = {"train": {}, "eval": []}
    log, evaluate = training.training_log, training.evaluate
    names = inspect.signature(log)

    def write() -> None:
        if os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1):
            path.write_text(json.dumps(steps))

    def training_log(*positional: Any, **named: Any) -> Any:
        call = names.bind(*positional, **named).arguments
        losses = {key: float(value) for key, value in call["loss_dict"].items()}
        steps["train"][call["iteration"]] = [losses.get("lm loss"), float(call["grad_norm"])]
        write()
        return log(*positional, **named)

    def recorded_evaluate(*positional: Any, **named: Any) -> Any:
        result = evaluate(*positional, **named)
        steps["eval"].append({key: float(value) for key, value in result[0].items()}.get("lm loss"))
        write()
        return result

    training.training_log, training.evaluate = training_log, recorded_evaluate


def forget_boundaries() -> None:
    """Train each pack as one sample: the negative control."""
    from mindspeed_llm.megatron import packed_forward_step

    original = packed_forward_step.PackedBoundaries

    def whole_packs(actual_seq_len: tuple[int, ...], positions: Any) -> Any:
        return original(actual_seq_len=actual_seq_len[-1:], positions=positions)

    packed_forward_step.PackedBoundaries = whole_packs


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if sys.argv[2] == "own":
        run_own_loop(target, sys.argv[3:])
    elif sys.argv[4].startswith("mindspeed="):
        mindspeed = Path(sys.argv[4].partition("=")[2])
        run_under_mindspeed(target, Path(sys.argv[2]), Path(sys.argv[3]), mindspeed, sys.argv[5:])
    else:
        run_megatron(target, Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
