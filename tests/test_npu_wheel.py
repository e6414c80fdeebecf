"""The contract tests over a real torch_npu wheel, where there is one and a compiler: part of ci/npu_contract.sh."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("npu_compare", ROOT / "ci" / "npu_compare.py")
assert spec is not None and spec.loader is not None
npu_compare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(npu_compare)


@pytest.mark.long
def test_the_contract_over_the_real_wheel():
    """Skipped by name without a compiler or a wheel; the wheel is fetched once and kept in .npu_contract/."""
    command = ["bash", str(ROOT / "ci" / "npu_contract.sh"), "--tests-only"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def contract(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "ci" / "npu_contract.sh"), *flags]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False, env=environment)


def test_missing_files_are_reported_by_name(tmp_path):
    """No compiler, no environment: status 77 and the reason. A flag that it does not know is an error."""
    for program in ("bash", "dirname", "uname", "nm"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / program).symlink_to(found)
    without_gcc = contract("--tests-only", PATH=str(tmp_path))
    assert without_gcc.returncode == 77 and without_gcc.stdout == "== skipped: no gcc here\n"
    nowhere = contract("--on-device", MINDSPEED_LLM_VENV=str(tmp_path / "none"))
    assert nowhere.returncode == 77 and f"no environment at {tmp_path / 'none'}" in nowhere.stdout
    unknown = contract("--tests")
    assert unknown.returncode == 2 and "--tests: give --tests-only" in unknown.stderr


LOSSES = [(7.4, 5.5), (8.8, 8.5), (7.1, 3.3)]
CALLS = {
    name: 12 for each in npu_compare.OPERATORS for name in (each, npu_compare.BACKWARD.get(each, f"{each}_backward"))
}


@pytest.mark.parametrize(
    ("factor", "calls", "flags", "said"),
    [
        (1.0, CALLS, (), None),
        (1.001, CALLS, (), "step 1 differs"),
        (1.001, {}, ("--on-device",), None),
        (1.003, {}, ("--on-device",), "step 1 differs"),
        (1.0, CALLS | {"npu_swiglu_backward": 0}, (), "npu_swiglu_backward was never called"),
    ],
)
def test_comparison_of_three_steps(tmp_path, capsys, factor, calls, flags, said):
    for run, times in (("cpu", 1.0), ("npu", factor)):
        lines = [{"kind": "train", "loss": loss * times, "grad_norm": norm} for loss, norm in LOSSES]
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "npu.log").write_text((json.dumps({"torch_npu": "2.13.0", "calls": calls}) + "\n") * 2)
    assert npu_compare.main(tmp_path, bool(flags)) == (1 if said else 0)
    printed = capsys.readouterr().out
    assert (said in printed) if said else "FAILED" not in printed
