"""Mistakes that new users make: the first line of the message, and status 2. As functions, and as real commands."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from argument_rule_cases import small
from script_stubs import FROM_OUTSIDE, ROOT
from tiny_runs import RUN, write_files

from mindspeed_llm.programs.command import run_named

QWEN = "examples/mcore/qwen25/tune_qwen25_7b_4k_full_pack.sh"
TRAIN = RUN.split()


@dataclass(frozen=True)
class Mistake:
    """One command.

    Attributes:
        script: script at the top level of the checkout, and `inspect` after it.
        words: its arguments.
        first: beginning of the first line of its output, after 'SCRIPT: error: '.
    """

    script: str
    words: list[str]
    first: str

    @property
    def program(self) -> str:
        """Name of the program that the script starts."""
        if self.script.endswith("inspect"):
            return "inspect"
        return {"preprocess_data.py": "preprocess", "convert_ckpt.py": "convert"}.get(self.script, "pretrain")


def training(*words: str, first: str, base: list[str] = TRAIN) -> Mistake:
    """A training command on the packs of the test; it is only checked."""
    return Mistake("pretrain_gpt.py", [*base, "--data-path", "packs", *words, "--check-only"], first)


PREPROCESS = ["--input", "rows.json", "--tokenizer-name-or-path", "tokenizer", "--output-prefix", "out"]
MISTAKES = {
    "misspelt flag": training(
        "--seq-lenght", "64", first="--seq-lenght is not a flag of this program; did you mean --seq-length?"
    ),
    "flag of another framework": training(
        "--learning_rate", "1e-5", first="--learning_rate is not a flag of this program; use --lr"
    ),
    "ZeRO": training(
        "--deepspeed", "z3.json",
        first="--deepspeed is not a flag of this program; use --use-distributed-optimizer to divide the optimizer",
    ),
    "switch with a value": training("--bf16", "true", first="--bf16 takes no value; write --bf16 alone"),
    "value that is no number": training("--lr", "fast", first="--lr fast: not a number"),
    "name of the Hub": training(
        "--load", "Qwen/Qwen2.5-7B",
        first="--load Qwen/Qwen2.5-7B: no such directory; give the folder of a Hugging Face model",
    ),
    "raw rows without a handler": training(
        "--data-path", "rows.json", first="rows.json: no packed files; it is raw data: add --handler-name"
    ),
    "wrong prefix": training(
        "--data-path", "packed", first="packed_packed_input_ids_document.idx: no such file; check the prefix"
    ),
    "one process for two ranks": training(
        "--tensor-model-parallel-size", "2",
        first="1 rank cannot be divided by --tensor-model-parallel-size 2 × --pipeline-model-parallel-size 1 = 2; "
        "start 2 ranks (on one machine: torchrun --nproc_per_node 2)",
    ),
    "batch that cannot be divided": training(
        "--global-batch-size", "3",
        first="--global-batch-size 3 is not a multiple of --micro-batch-size 2 × 1 data-parallel ranks; give 2 or 4",
    ),
    "two lengths": training("--train-epochs", "2", first="--train-iters"),
    "no place for the model": training(
        base=[word for word in TRAIN if word != "--no-save-model"],
        first="--save is missing: without it the trained model is lost at the end; add --save DIR",
    ),
    "no data": Mistake("posttrain_gpt.py", [*small(data_path=None, num_layers=None), "--check-only"],
                       "--num-layers is required"),
    "packs without a length": Mistake(
        "preprocess_data.py", [*PREPROCESS, "--pack"],
        "--pack needs --seq-length: give the number of tokens per pack, such as --seq-length 4096",
    ),
    "rows that are not there": Mistake(
        "preprocess_data.py", [*PREPROCESS, "--input", "gone.json", "--pack", "--seq-length", "64"],
        "--input gone.json: no such file or directory; check the path",
    ),
    "no prefix to look at": Mistake(
        "preprocess_data.py inspect", ["gone"], "gone_packed_input_ids_document.idx: no such file; check the prefix"
    ),
    "conversion without a direction": Mistake(
        "convert_ckpt.py", ["--load-dir", ".", "--save-dir", "out", "--save-model-type", "hf"],
        "--load-model-type and --save-model-type are both hf; one must be hf, one mg",
    ),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with packed files, rows and nothing else."""
    write_files(tmp_path / "packs")
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "output": "b"}]', "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in FROM_OUTSIDE.split():
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def check(mistake: Mistake, status: int, out: str, errors: str) -> None:
    first = next(line for line in errors.splitlines() if not line.startswith("reading "))
    assert status == 2, errors
    assert first.startswith(f"{mistake.script}: error: {mistake.first}"), errors
    assert out == "" and "Traceback" not in errors


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_its_message_and_status_2(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake, before = MISTAKES[name], sorted(folder.iterdir())
    status = run_named(mistake.program, mistake.words, mistake.script)
    check(mistake, status, *capsys.readouterr())
    assert sorted(folder.iterdir()) == before, "nothing is written"


def run_script(mistake: Mistake, folder: Path) -> None:
    name, *first = mistake.script.split()
    command = [sys.executable, str(ROOT / name), *first, *mistake.words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    check(mistake, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["flag of another framework", "no data"])
def test_a_mistake_in_a_real_command(name: str, folder: Path) -> None:
    run_script(MISTAKES[name], folder)


@pytest.mark.long
@pytest.mark.parametrize("name", MISTAKES)
def test_every_mistake_in_a_real_command(name: str, folder: Path) -> None:
    run_script(MISTAKES[name], folder)


def test_a_mistake_in_a_tune_script(folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {
        "DATA_PATH": "packs",
        "CKPT_LOAD_DIR": "gone",
        "TOKENIZER_MODEL": str(folder),
        "CKPT_SAVE_DIR": "out",
    }
    command = ["bash", str(ROOT / QWEN)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    load, *others = done.stderr.splitlines()
    assert load.startswith("pretrain_gpt.py: error: --load gone: no such directory; give the folder of")
    # Packs of 8 tokens, and a folder without a tokenizer.
    assert {line.split()[2] for line in others} == {"--seq-length", "--tokenizer-name-or-path"}, done.stderr
