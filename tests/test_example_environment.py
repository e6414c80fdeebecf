"""examples/environment.sh: which torch is installed, with a python that only writes down what pip is asked for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINNED = re.search(r"^torch==.+$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)[0]
# pip's arguments on one line each, with the line about torch of the constraints that it was given.
STUB = """#!/bin/bash
if [ "$1" = -m ]; then
    echo "${*:3} | $(grep '^torch==' "$6")" >> "$CALLS"
    [ -z "$FAILS" ] || exit 1
else
    echo "$TORCH"
fi
"""


def install(folder: Path, torch: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Install into an environment that has `torch`; the calls of pip without the name of the constraints."""
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB, "utf-8")
    python.chmod(0o755)
    script = f'ROOT="{ROOT}"; source "$ROOT/examples/environment.sh"; use_environment {folder}/environment test'
    environment = {**os.environ, "CALLS": str(folder / "calls"), "TORCH": torch, "FAILS": ""}
    done = subprocess.run(
        ["bash", "-c", f"{script}; install_package chat peft"],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    calls = (folder / "calls").read_text("utf-8").splitlines() if (folder / "calls").exists() else []
    return done, [re.sub(r"--constraint \S+", "--constraint FILE", call) for call in calls]


def test_an_environment_without_torch_gets_the_tested_one_first(tmp_path: Path) -> None:
    done, calls = install(tmp_path, "")
    assert done.returncode == 0, done.stderr
    assert calls == [
        f"--quiet install --constraint FILE {PINNED} | {PINNED}",
        f"--quiet install --constraint FILE --editable {ROOT}[chat] peft | {PINNED}",
    ]


@pytest.mark.parametrize("torch", ["2.7.1", "2.10.0+cpu", "3.0.0a0+git12ab"])
def test_a_torch_that_the_package_allows_is_left_alone(torch: str, tmp_path: Path) -> None:
    done, calls = install(tmp_path, torch)
    assert done.returncode == 0 and f"torch {torch} of the environment is kept" in done.stdout
    assert calls == [f"--quiet install --constraint FILE --editable {ROOT}[chat] peft | torch=={torch}"]


@pytest.mark.parametrize("torch", ["2.6.0", "1.13.1+cu117"])
def test_an_older_torch_is_refused_and_not_replaced(torch: str, tmp_path: Path) -> None:
    done, calls = install(tmp_path, torch)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith(f"error: the environment has torch {torch}, and this package needs 2.7; upgrade it")


def test_the_torch_of_an_environment_is_found() -> None:
    """The code that the stub above replaces."""
    command = f'source "{ROOT}/examples/environment.sh"; installed_torch'
    found = subprocess.run(["bash", "-c", command], env=python_first(), capture_output=True, text=True, check=True)
    assert found.stdout.strip() == version("torch")
    command = f'source "{ROOT}/examples/environment.sh"; python() {{ command python -S "$@"; }}; installed_torch'
    none = subprocess.run(["bash", "-c", command], env=python_first(), capture_output=True, text=True, check=True)
    assert none.stdout.strip() == "", "without site-packages there is no torch"


def python_first() -> dict[str, str]:
    """An environment in which python is the one of this process."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_a_failed_installation_stops_the_script(tmp_path: Path) -> None:
    done, calls = install(tmp_path, "", FAILS="yes")
    assert done.returncode != 0 and len(calls) == 1
