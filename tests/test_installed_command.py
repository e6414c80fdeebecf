"""The installed command `mindspeed-llm`: a wheel in a fresh environment, run outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
from preprocess_command import Command, rows
from small_tokenizers import byte_level_folder
from time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[1]
COMMAND = "mindspeed-llm"
NEEDED_SETUPTOOLS = 77
RUN = (
    "--num-layers 1 --hidden-size 16 --ffn-hidden-size 32 --num-attention-heads 2 --swiglu --device cpu --lr 1e-3 "
    "--no-save-model "
    "--micro-batch-size 1 --train-iters 2 --seq-length 256 --is-instruction-dataset --neat-pack --split 100,0,0 "
    "--reset-position-ids --padded-vocab-size 400"
)


def without_python_path() -> dict[str, str]:
    """Return the environment variables of this process, except PYTHONPATH."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Environment:
    """A fresh virtual environment with our wheel; other packages are those of the environment of the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        source = folder / "source"  # a build leaves files beside the sources
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        shutil.copytree(ROOT / "mindspeed_llm", source / "mindspeed_llm", ignore=shutil.ignore_patterns("__pycache__"))
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
        subprocess.run([*pip, *build], check=True, timeout=HANG_SECONDS)
        (wheel,) = folder.glob("*.whl")
        shutil.rmtree(source)
        venv.create(folder / "environment")
        self.bin = folder / "environment" / "bin"
        install = [
            "--python",
            str(self.bin / "python"),
            "install",
            "--no-deps",
            "--no-index",
            "--no-compile",
            str(wheel),
        ]
        # With a checkout on PYTHONPATH pip takes the package as installed.
        subprocess.run([*pip, *install], check=True, timeout=HANG_SECONDS, env=without_python_path())
        (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
        # Packages of the environment itself come first; a .pth file in the other folder, such as that of an editable
        # installation of this project, is not read.
        (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command outside the checkout, without its modules on the path."""
        variables = without_python_path()
        variables["PATH"] = f"{self.bin}{os.pathsep}{variables['PATH']}"
        return subprocess.run(
            words,
            cwd=self.folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    if int(metadata.version("setuptools").partition(".")[0]) < NEEDED_SETUPTOOLS:
        pytest.skip(f"needs setuptools {NEEDED_SETUPTOOLS}: pip install -e '.[test]'")
    return Environment(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def prefix(installed: Environment) -> Path:
    """Packed files that the installed command wrote."""
    tokenizer = byte_level_folder(installed.folder / "tokenizer")
    command = Command(installed.folder, tokenizer, rows(20))
    done = installed.run(COMMAND, "preprocess", *command.words())
    assert done.returncode == 0, done.stderr
    return command.prefix


def test_the_wheel_has_the_data_files_of_the_checkout(installed: Environment) -> None:
    program = "import mindspeed_llm; print(mindspeed_llm.__path__[0])"
    package = Path(installed.run("python", "-c", program).stdout.strip())
    assert package.is_relative_to(installed.folder)

    def files(folder: Path) -> set[str]:
        found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    assert files(package) == files(ROOT / "mindspeed_llm")


def test_programs_of_the_command(installed: Environment) -> None:
    help_text = installed.run(COMMAND, "--help").stdout
    for program in ("preprocess", "inspect", "pretrain", "convert", "report", "verify", "recipe"):
        assert f"\n  {program} " in help_text
    for program in ("preprocess", "convert", "report"):
        done = installed.run(COMMAND, program, "--help")
        assert done.returncode == 0 and done.stdout.startswith(f"usage: {COMMAND} {program} [flags]"), done.stderr
        wrong = installed.run(COMMAND, program, "--no-such-flag")
        assert wrong.returncode == 2 and wrong.stderr.startswith(f"{COMMAND} {program}: error: "), wrong.stderr


def test_an_unknown_program_is_refused(installed: Environment) -> None:
    done = installed.run(COMMAND, "pretain")
    assert (done.returncode, done.stderr) == (
        2,
        "mindspeed-llm: error: pretain: not a program of mindspeed-llm; did you mean pretrain?\n",
    )
    missing = installed.run("python", "-m", "mindspeed_llm")
    assert missing.returncode == 2 and "error: the name of a program is missing; the programs are" in missing.stderr


def test_preprocess_and_inspect(installed: Environment, prefix: Path) -> None:
    page = installed.folder / "page.html"
    done = installed.run(COMMAND, "inspect", str(prefix), "--html", str(page))
    assert done.returncode == 0 and page.read_text("utf-8").startswith("<!doctype html>"), done.stderr
    manifest = json.loads(Path(f"{prefix}_packed_manifest.json").read_text("utf-8"))
    assert manifest["template"]["name"] == "qwen" and manifest["samples"] == 20


def test_train_with_torchrun_and_report(installed: Environment, prefix: Path) -> None:
    run = installed.folder / "run"
    words = ["pretrain", *RUN.split(), "--data-path", str(prefix), "--run-dir", str(run)]
    torchrun = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "--no-python"]
    done = installed.run(*torchrun, COMMAND, *words)
    assert done.returncode == 0 and " 2/2 | loss " in done.stdout, done.stdout + done.stderr
    report = installed.run(COMMAND, "report", str(run), "--no-picture")
    assert report.returncode == 0 and "run" in report.stdout, report.stderr
    wrong = installed.run("python", "-m", "mindspeed_llm", *words, "--no-such-flag")
    assert wrong.returncode == 2 and wrong.stderr.startswith(f"{COMMAND} pretrain: error: --no-such-flag"), wrong.stderr
