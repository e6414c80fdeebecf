"""The dry run and the run compute the same number of steps, for every kind of data order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS
from tiny_runs import ROOT, RUN, pretrain, train_records, write_files

SMALL = "--num-layers 1 --hidden-size 16 --ffn-hidden-size 16 --num-attention-heads 2"
LENGTH = "--split 100,0,0 --eval-iters 0 --device cpu"
UNPACKED = RUN.replace("--neat-pack --reset-position-ids ", "").replace("--train-iters 6 ", "")
NEAT = RUN.replace("--train-iters 6 ", "")
VARIABLE = "--variable-seq-lengths"
# name → (whether the data are packed, flags). 21 packs, or 21 samples, in batches of 8.
ORDERS = {
    "shuffled": (True, "--train-epochs 1"),
    "file order": (True, "--train-epochs 3 --no-shuffle"),
    "padded samples": (True, "--train-epochs 3 --padded-samples"),
    "samples counted": (True, "--train-samples 50"),
    "iterations counted": (True, "--train-iters 4"),
    "length-grouped": (False, f"--train-epochs 3 --length-grouped {VARIABLE}"),
    "variable lengths": (False, f"--train-epochs 3 {VARIABLE}"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {packed: write_files(folder / f"packed_{packed}", packed=packed, count=21) for packed in (True, False)}


def words_of(name: str, data: dict[bool, Path]) -> list[str]:
    packed, flags = ORDERS[name]
    base = NEAT if packed else UNPACKED
    return f"{base} {SMALL} {LENGTH} --global-batch-size 8 {flags} --data-path {data[packed]}".split()


@pytest.fixture(scope="module")
def planned(data: dict[bool, Path]) -> dict[str, list[int]]:
    """Iterations and packs of each run, from the dry run."""
    commands = json.dumps([words_of(name, data) for name in ORDERS])
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests/dry_run_program.py"), commands]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return dict(zip(ORDERS, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("name", ORDERS)
def test_the_run_makes_the_steps_of_the_dry_run(
    name: str,
    planned: dict[str, list[int]],
    data: dict[bool, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretrain(monkeypatch, "--run-dir", str(tmp_path), run=" ".join(words_of(name, data)))
    records = train_records(tmp_path)
    last = max(records)
    assert [last, records[last]["consumed_samples"]] == planned[name]
    assert f"the run {last} iterations" in capsys.readouterr().out
