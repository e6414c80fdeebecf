"""Recipes: mistakes in the file, the commands of the steps, what is skipped, signals, and one complete small recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from preprocess_command import rows
from small_tokenizers import byte_level_folder
from time_limits import HANG_SECONDS

from mindspeed_llm.errors import ConfigError
from mindspeed_llm.recipe.recipe_file import read_recipe
from mindspeed_llm.recipe.recipe_steps import RecipeStep, build_steps, files_of
from mindspeed_llm.recipe.run_recipe import StepError, evaluate, run_recipe, start
from mindspeed_llm.recipe.step_record import StepRecord, reason_to_run

ROOT = Path(__file__).parents[1]
EXAMPLES = ("full_finetuning", "lora", "pretraining")
SMALL = """
output: {folder}/out
preprocess:
  input: {folder}/rows.json
  handler-name: AlpacaStyleInstructionHandler
  tokenizer-name-or-path: {folder}/tokenizer
  prompt-type: qwen
  seq_length: 256
  pack: true
  neat_pack: true
train:
  num-layers: 1
  hidden-size: 16
  ffn-hidden-size: 32
  num-attention-heads: 2
  swiglu: true
  disable-bias-linear: true
  add-qkv-bias: true
  untie-embeddings-and-output-weights: true
  make-vocab-size-divisible-by: 1
  device: cpu
  micro-batch-size: 1
  train-iters: 2
  lr: 1e-3
  split: 80,20,0
  eval-iters: 1
export: {{model-type-hf: llama2}}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A recipe on twenty rows."""
    byte_level_folder(tmp_path / "tokenizer")
    (tmp_path / "rows.json").write_text(json.dumps(rows(20)))
    (tmp_path / "recipe.yaml").write_text(SMALL.format(folder=tmp_path))
    return tmp_path / "recipe.yaml"


def recipe_program(recipe: Path | str, *more: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mindspeed_llm", "recipe", str(recipe), *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3 * HANG_SECONDS,
        check=False,
    )


def problems_of(folder: Path, text: str) -> list[str]:
    path = folder / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        build_steps(read_recipe(path))
    return [line.replace(f"{folder}/", "") for line in raised.value.problems]


def test_mistakes_in_a_recipe_are_reported_together(tmp_path: Path) -> None:
    text = "output: a\nproceses: 2\ntrain:\n  micro-batch-size: true\n  nope: 1\n  qlora: true\nexport: 3\n"
    assert problems_of(tmp_path, text) == [
        "r.yaml:2: proceses is not a key of a recipe; did you mean processes?",
        "r.yaml:4: train: micro-batch-size takes a whole number, not true",
        "r.yaml:5: train: nope is not a flag of this program; --help lists them",
        "r.yaml:6: train: --qlora: QLoRA is not supported yet; leave the flag out",
        "r.yaml:7: not a mapping; write 'name: value' lines",
    ]
    text = (
        "output: a\npreprocess: {nope: 1, seq-length: 0}\ntrain: {lr: x, tain-iters: 3}\nexport: {params-dtype: int8}"
    )
    assert [line.split(";")[0] for line in problems_of(tmp_path, text)] == [
        "r.yaml:2: preprocess: nope is not a flag of this program",
        "r.yaml:3: train: tain-iters is not a flag of this program",
        "r.yaml: preprocess: --seq-length 0: must be at least 1",
        "r.yaml: train: --lr x: not a number",
        "r.yaml: export: --params-dtype int8: not one of bf16, fp16, fp32",
    ], "keys and values are reported together"
    assert problems_of(tmp_path, "processes: 0\npreprocess: {pack: true}") == [
        "r.yaml: processes 0: not a whole number of at least 1"
    ]
    assert len(problems_of(tmp_path, "processes: 2")) == 2, "no output, no training"
    found = problems_of(
        tmp_path, "output: a\npreprocess: {seq-length: -3}\ntrain: {lr: x}\nexport: {params-dtype: int8}"
    )
    assert {line.split(": ")[1] for line in found} == {"preprocess", "train", "export"}
    assert not [line for line in found if "train: --seq-length" in line], "it would come from preprocess"


def test_what_the_sections_name_is_looked_for_before_the_first_step(small: Path) -> None:
    folder, right = small.parent, small.read_text()
    wrong = (
        right.replace("/rows.json", "/rws.json")
        .replace("AlpacaStyleInstructionHandler", "Sharegpt")
        .replace("prompt-type: qwen", "prompt-type: qwen25")
        .replace("train:\n", "train:\n  load: {folder}/none\n  generate-prompts: {folder}/none.jsonl\n")
        .replace("{model-type-hf: llama2}", "{hf-dir: modl}")
        .replace("{folder}", str(folder))
    )
    names = [
        "r.yaml: preprocess: --input rws.json: no such file or directory",
        "r.yaml: preprocess: --handler-name Sharegpt: no such handler",
        "r.yaml: preprocess: --prompt-type qwen25: no such template",
        "r.yaml: train: --load none: no such directory",
        "r.yaml: train: --generate-prompts none.jsonl: cannot be read (No such file or directory)",
        "r.yaml: export: --hf-dir modl: no such directory",
    ]
    found = problems_of(folder, wrong)
    assert [line.split(";")[0] for line in found] == names, found
    # A key that is unknown, or a value that is invalid, hides none of them, and none is reported twice.
    found = problems_of(folder, wrong.replace("lr: 1e-3", "lr: x\n  tain-iters: 3"))
    assert {line.split(";")[0] for line in found[1:]} == {*names, "r.yaml: train: --lr x: not a number"}, found
    assert len(found) == len(names) + 2
    (folder / "r.yaml").write_text(wrong)
    with pytest.raises(ConfigError, match="Sharegpt"):
        run_recipe(read_recipe(folder / "r.yaml"), dry_run=True)
    assert not (folder / "out").exists()
    # A tokenizer of both programs is reported where it is given; a template is needed for conversations.
    found = problems_of(folder, right.replace("/tokenizer", "/tokeniser").replace("  prompt-type: qwen\n", ""))
    assert [line.split(";")[0] for line in found] == [
        "r.yaml: preprocess: --tokenizer-name-or-path tokeniser: no such directory"
    ]


def test_what_the_steps_write_need_not_exist(small: Path) -> None:
    out, text = small.parent / "out", small.read_text()
    text = text.replace("train:\n", f"train:\n  save-hf: {small.parent}/hf\n  data-path: [{out}/data/rows]\n")
    export = f"{{load-dir: {out}/checkpoints, hf-dir: {small.parent}/hf}}"
    small.write_text(text.replace("{model-type-hf: llama2}", export))
    assert len(build_steps(read_recipe(small))) == 4
    small.write_text(text.replace(f"{out}/data/rows", f"{out}/data/rovs"))
    with pytest.raises(ConfigError, match=r"train: .*rovs"):
        build_steps(read_recipe(small))


def test_a_file_of_flags_is_no_recipe(tmp_path: Path) -> None:
    flags = "lr: 1e-5\nload: ./m\ntrain_iters: 4\nsave: c\n"
    (line,) = problems_of(tmp_path, flags)
    assert "run 'mindspeed-llm pretrain --config r.yaml'" in line
    (line,) = problems_of(tmp_path, "input: a.json\nhandler-name: x\noutput-prefix: b\n")
    assert "run 'mindspeed-llm preprocess --config r.yaml'" in line
    found = problems_of(tmp_path, f"output: a\n{flags}train: {{}}\n")
    assert found[0] == "r.yaml:2: lr is not a key of a recipe; it is a flag: move it into the section train"
    assert len(found) == 4


def test_the_steps_follow_from_each_other(small: Path) -> None:
    steps = {step.name: step for step in build_steps(read_recipe(small))}
    assert list(steps) == ["preprocess", "train", "evaluate", "export"]
    out = small.parent / "out"
    train = " ".join(steps["train"].arguments)
    assert f"--data-path {out}/data/rows --tokenizer-name-or-path={small.parent}/tokenizer" in train
    assert "--seq-length" not in train and f"--save={out}/checkpoints" in train
    assert f"--load-dir={out}/checkpoints --load-model-type=mg" in " ".join(steps["export"].arguments)


def test_an_adapter_is_exported_alone_or_merged(small: Path) -> None:
    base = small.parent / "base"
    base.mkdir()
    (base / "latest_checkpointed_iteration.txt").write_text("1")
    text = small.read_text().replace("train:\n", f"train:\n  lora-target-modules: [q_proj]\n  load: {base}\n")
    small.write_text(text)
    assert "--save-lora-to-hf" in build_steps(read_recipe(small))[-1].arguments
    small.write_text(text.replace("{model-type-hf: llama2}", f"{{load-dir: {base}}}"))
    words = build_steps(read_recipe(small))[-1].arguments
    assert f"--load-dir={base}" in words and f"--lora-load={small.parent}/out/checkpoints" in words


def test_a_step_is_skipped_if_flags_inputs_and_outputs_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a")
    (tmp_path / "out_packed_x").write_text("b")
    step = RecipeStep("preprocess", ("--x=1",), (str(tmp_path / "in"),), (str(tmp_path / "out"),))
    path = tmp_path / "steps" / "preprocess.json"
    assert reason_to_run(step, StepRecord.read(path)) == "it is not complete"
    StepRecord.of(step, None).write(path)

    def reason(step: RecipeStep = step) -> str | None:
        return reason_to_run(step, StepRecord.read(path))

    assert reason() is None
    os.utime(tmp_path / "in", (1, 1))
    assert reason() is None, "the content decides"
    (tmp_path / "in").write_text("c")
    assert reason() == f"an input has changed: {tmp_path / 'in'}"
    (tmp_path / "in").write_text("a")
    (tmp_path / "out_packed_x").unlink()
    assert reason() == f"an output has changed: {tmp_path / 'out_packed_x'}"
    assert reason(RecipeStep("preprocess", ("--x=2",), step.inputs, step.outputs)) == "its flags have changed"
    path.write_text(path.read_text()[:-9])
    assert reason() == "it is not complete", "the record is damaged"


def test_the_evaluation_has_losses_and_answers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    lines = [{"kind": "start"}, {"kind": "train", "iteration": 2, "loss": 3.0}]
    lines += [{"kind": "eval", "iteration": number, "loss": 4.0 / number} for number in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "evaluation.json"
    step = RecipeStep("evaluate", (str(run),), (), (str(out),))
    evaluate(step)
    losses = {"valid": {"iteration": 2, "loss": 2.0, "first_loss": 4.0}}
    assert json.loads(out.read_text()) == {"held_out": losses, "answers": None}
    answer = {"line": 1, "prompt": "a", "output": "c", "answer": "b", "stopped": True}
    answers = [answer | {"iteration": number, "exact": number == 2} for number in (1, 2)]
    (run / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    evaluate(step)
    counted = {"iteration": 2, "answers": 1, "expected": 1, "exact": 1}
    assert json.loads(out.read_text())["answers"] == counted and (run / "report.html").is_file()


def test_of_a_directory_of_checkpoints_only_the_last_one_counts(tmp_path: Path) -> None:
    for number in (2, 4):
        folder = tmp_path / f"iter_{number:07d}"
        folder.mkdir()
        (folder / "run.json").write_text("{}")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("4\n")
    names = [str(path.relative_to(tmp_path)) for path in files_of(str(tmp_path))]
    assert names == ["latest_checkpointed_iteration.txt", "iter_0000004/run.json"]


def test_a_signal_reaches_the_program_once(tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        "seen = []\n"
        "signal.signal(signal.SIGINT, lambda *_: seen.append(1))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not seen: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "pathlib.Path(sys.argv[1]).write_text(str(len(seen)))"
    )
    ready = tmp_path / "ready"

    def send() -> None:
        while not ready.exists():
            threading.Event().wait(0.02)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.1)

    before = signal.getsignal(signal.SIGINT)  # ignored, if the tests run in the background of a shell
    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(StepError, match="train: stopped by SIGINT") as raised:
        start([sys.executable, "-c", program, str(ready)], "train", {})
    sender.join()
    assert ready.read_text() == "1"
    assert raised.value.status == 130 and signal.getsignal(signal.SIGINT) is before
    with pytest.raises(StepError, match="export: ended with status 2") as raised:
        start([sys.executable, "-c", "import sys; sys.exit(2)"], "export", {})
    assert raised.value.status == 2


def test_several_machines_are_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNODES", "2")
    with pytest.raises(ConfigError, match="a recipe runs on one machine"):
        run_recipe(read_recipe(small))


@pytest.mark.long
def test_a_small_recipe(small: Path) -> None:
    out = small.parent / "out"
    planned = recipe_program(small, "--dry-run")
    assert planned.returncode == 0 and not out.exists(), planned.stderr
    assert len(re.findall(r"^== \w+: would run, because", planned.stdout, re.MULTILINE)) == 4
    done = recipe_program(small)
    assert done.returncode == 0, done.stdout + done.stderr
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["held_out"]["valid"]["iteration"] == 2
    assert (out / "model" / "model.safetensors").is_file() and (out / "model" / "tokenizer.json").is_file()
    again = recipe_program(small)
    assert again.returncode == 0 and again.stdout.count(": skipped, ") == 4, again.stdout + again.stderr


@pytest.mark.long
def test_a_failed_step_leaves_what_is_complete(small: Path) -> None:
    out = small.parent / "out"
    wrong = small.read_text().replace(
        "train-iters: 2", "train-iters: 2\n  run-dir: " + str(small.parent / "rows.json/run")
    )
    right = small.read_text()
    small.write_text(wrong)
    failed = recipe_program(small)
    assert failed.returncode == 1 and "train: ended with status 1" in failed.stderr, failed.stderr
    assert (out / "steps" / "preprocess.json").is_file() and not (out / "steps" / "train.json").exists()
    small.write_text(right)
    done = recipe_program(small)
    assert done.returncode == 0 and done.stdout.count(": skipped, ") == 1, done.stderr
    # A file of the export is lost: only the export is made again, in place of what the recipe itself wrote.
    (out / "model" / "config.json").unlink()
    repaired = recipe_program(small)
    assert repaired.returncode == 0 and repaired.stdout.count(": skipped, ") == 3, repaired.stderr
    assert (out / "model" / "config.json").is_file()


@pytest.mark.long
def test_an_interrupted_training_continues(small: Path) -> None:
    small.write_text(small.read_text().replace("train-iters: 2", "train-iters: 400\n  log-interval: 1"))
    words = [sys.executable, "-m", "mindspeed_llm", "recipe", str(small)]
    log = small.parent / "log"
    with log.open("w") as output:
        running = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=output, stderr=output)
        while " 3/400 " not in log.read_text() and running.poll() is None:
            threading.Event().wait(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(HANG_SECONDS) == 130, log.read_text()
    done = recipe_program(small)
    assert done.returncode == 0 and "resuming from" in done.stdout, done.stdout + done.stderr
    assert json.loads((small.parent / "out" / "evaluation.json").read_text())["held_out"]["valid"]["iteration"] == 400


@pytest.mark.long
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples(name: str, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "recipes" / f"{name}.yaml").read_text("utf-8")
    commands = re.findall(r"^#   python (.+)$", text, re.MULTILINE)
    shutil.copytree(ROOT / "examples" / "demo", tmp_path / "examples" / "demo")
    for command in commands:
        subprocess.run([sys.executable, *command.split()], cwd=tmp_path, check=True, capture_output=True)
    shutil.copytree(ROOT / "examples" / "recipes", tmp_path / "examples" / "recipes")
    (tmp_path / "recipe.yaml").write_text(text)
    done = recipe_program("recipe.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    evaluation = json.loads((tmp_path / "recipes" / name / "evaluation.json").read_text())
    held_out = evaluation["held_out"]["valid"]
    assert held_out["iteration"] == 40 and held_out["loss"] < held_out["first_loss"]
    answers = evaluation["answers"]
    assert answers is None if name == "pretraining" else (answers["iteration"], answers["expected"]) == (40, 3)
    assert (tmp_path / "recipes" / name / "run" / "report.html").is_file()
    assert (tmp_path / "recipes" / name / "model" / "config.json").is_file()
