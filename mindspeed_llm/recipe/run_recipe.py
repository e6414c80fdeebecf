"""Run the steps of a recipe, each as its program in a process of its own.

A step whose flags, inputs and outputs are those of its record is skipped. SIGINT and SIGTERM are passed on to the
program, which ends cleanly (the training saves a checkpoint); the same command then continues.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from mindspeed_llm.errors import ConfigError, UserError
from mindspeed_llm.launcher_environment import package_path, planned_ranks, read_launcher_environment
from mindspeed_llm.recipe.recipe_file import PROGRAMS, Recipe
from mindspeed_llm.recipe.recipe_steps import RecipeStep, build_steps
from mindspeed_llm.recipe.step_record import StepRecord, reason_to_run
from mindspeed_llm.reports import draw_loss, read_metrics, runs_table, write_run_page
from mindspeed_llm.reports.generations import Generations, read_generations
from mindspeed_llm.reports.run_metrics import RunMetrics
from mindspeed_llm.storage.atomic_write import write_atomically

logger = logging.getLogger(__name__)

PACKAGE = "mindspeed_llm"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS_TO_SAVE = "900"  # torchrun's own 30 s are too short for the checkpoint of a large model


class StepError(UserError):
    """A step did not end with status 0. Its program has printed the reason."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def run_recipe(recipe: Recipe, dry_run: bool = False) -> None:
    """Run the steps of a recipe that are not complete.

    Args:
        recipe: the recipe.
        dry_run: whether to print what would be done instead.

    Raises:
        ConfigError: a program would refuse its command line, or the command is part of a job of several processes.
        StepError: a step failed or was interrupted.
    """
    machines = os.environ.get("NNODES", "1")
    if read_launcher_environment().world_size > 1 or machines not in ("", "1"):
        raise ConfigError(
            "a recipe runs on one machine and starts torchrun itself: run it without torchrun and NNODES; on several "
            "machines start preprocess, pretrain and convert yourself (examples/launch/README.md)"
        )
    steps = build_steps(recipe)
    earlier: str | None = None
    for step in steps:
        path = recipe.output / "steps" / f"{step.name}.json"
        record = StepRecord.read(path)
        reason = f"after {earlier}" if dry_run and earlier else reason_to_run(step, record)
        if reason is None:
            logger.info(f"== {step.name}: skipped, its flags, inputs and outputs are those of the last time")
            continue
        logger.info(f"== {step.name}: {'would run' if dry_run else 'runs'}, because {reason}")
        if dry_run:
            plan(step, recipe, data_exist=earlier is None)
            earlier = earlier or step.name
            continue
        remove_old_export(step, record)
        if step.name == "evaluate":
            evaluate(step)
        else:
            run_program_of(step, recipe)
        StepRecord.of(step, record).write(path)
    if not dry_run:
        logger.info(f"== complete: {recipe.output}")


def command_of(step: RecipeStep, recipe: Recipe, dry_run: bool = False) -> list[str]:
    """Return the command of a step, as a list of words.

    Args:
        step: a step that has a program.
        recipe: the recipe.
        dry_run: whether the training is only planned, in one process.
    """
    python = [sys.executable, "-m"]
    if step.name == "train" and not dry_run:
        ranks = ["--standalone", "--nproc_per_node", str(recipe.settings.processes)]
        python += ["torch.distributed.run", *ranks, "-m"]
    words = [*python, PACKAGE, PROGRAMS[step.name], *step.arguments]
    return [*words, "--dry-run"] if dry_run else words


def plan(step: RecipeStep, recipe: Recipe, data_exist: bool) -> None:
    """Print the command of a step, and the plan of the training if its data exist.

    Raises:
        StepError: the plan of the training fails.
    """
    if step.name == "evaluate":
        logger.info(f"   held-out losses and answers of {step.arguments[0]} → {', '.join(step.outputs)}")
        return
    logger.info(f"   {shlex.join(command_of(step, recipe))}")
    if step.name == "train" and data_exist:
        start(command_of(step, recipe, dry_run=True), step.name, planned_ranks(recipe.settings.processes))
    elif step.name == "train":
        logger.info("   the plan of the training needs the data of the step before")


def run_program_of(step: RecipeStep, recipe: Recipe) -> None:
    """Run the program of a step.

    Raises:
        StepError: it did not end with status 0.
    """
    more = {}
    if step.name == "train":
        more = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": SECONDS_TO_SAVE}
        if recipe.settings.processes > 1:  # otherwise the ranks would compete for the processors
            more["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // recipe.settings.processes))
    start(command_of(step, recipe), step.name, {name: os.environ.get(name, value) for name, value in more.items()})


def start(words: list[str], name: str, variables: dict[str, str]) -> None:
    """Start a process, pass signals on to it, and wait for its end.

    Args:
        words: the command.
        name: name of the step.
        variables: more environment variables.

    Raises:
        StepError: the process did not end with status 0, or a signal arrived.
    """
    received: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        # Only once: a second signal would interrupt the cleanup of the program.
        if not received and process is not None:
            process.send_signal(number)
        received.append(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        # In a session of its own, so that Ctrl-C of a terminal reaches it once, through this process.
        process = subprocess.Popen(words, env=os.environ | package_path() | variables, start_new_session=True)
        if received:
            process.send_signal(received[0])
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signalled = signal.Signals(received[0])
        message = f"{name}: stopped by {signalled.name}; what is written is complete, and the same command continues"
        raise StepError(message, 128 + signalled)
    if status:
        ended = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        advice = "its reason is above. The steps before it are complete; when it is fixed, the same command continues"
        raise StepError(f"{name}: {ended}; {advice}", 128 - status if status < 0 else status)


def remove_old_export(step: RecipeStep, record: StepRecord | None) -> None:
    """Remove the folder of an earlier export, which the program would refuse to replace, if it is as it was written.

    Args:
        step: the step that will run.
        record: its last record.
    """
    if step.name != "export" or record is None:
        return
    now = StepRecord.of(step, record).outputs
    if now and all(path in record.outputs and record.outputs[path].sha256 == file.sha256 for path, file in now.items()):
        shutil.rmtree(step.outputs[0])


def evaluate(step: RecipeStep) -> None:
    """Print and draw the training, and write its last held-out losses and answers to evaluation.json.

    Raises:
        UserError: the run has no metrics, or its pictures cannot be written.
    """
    run = Path(step.arguments[0])
    metrics = read_metrics(run)
    print(runs_table([run.name], [metrics]))
    evaluation = {"held_out": held_out_losses(metrics), "answers": last_answers(read_generations(run))}
    logger.info(f"wrote {draw_loss(run)}")
    logger.info(f"wrote {write_run_page(run)}")
    write_atomically(Path(step.outputs[0]), (json.dumps(evaluation, indent=1) + "\n").encode())


def held_out_losses(metrics: RunMetrics) -> dict[str, dict[str, float]]:
    """Log and return the first and the last held-out loss of each split that has one."""
    found = {}
    for split in metrics.evaluations:
        iterations, losses = metrics.held_out(split)
        if losses:
            found[split] = {"iteration": iterations[-1], "loss": losses[-1], "first_loss": losses[0]}
            logger.info(f"held-out loss ({split}): {losses[0]:.4f} → {losses[-1]:.4f} at iteration {iterations[-1]}")
    if not found:
        logger.info("notice: no held-out loss: the training has no validation data (--split) or --eval-iters 0")
    return found


def last_answers(generations: Generations) -> dict[str, int] | None:
    """Log and count the answers to --generate-prompts at the last evaluation; None if the run has none."""
    if not generations.iterations:
        return None
    iteration = generations.iterations[-1]
    answers = sum(iteration in prompt.answers for prompt in generations.prompts)
    exact, expected = generations.score(iteration)
    score = f", {exact} of {expected} exact" if expected else ""
    logger.info(f"answers at iteration {iteration}: {answers}{score}")
    return {"iteration": iteration, "answers": answers, "expected": expected, "exact": exact}
