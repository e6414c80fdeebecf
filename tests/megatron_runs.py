"""Run the cases of megatron_cases.py in Megatron and in our own loop, each program in a process, and compare them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_cases import CASES
from time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[1]
TESTS = Path(__file__).parent
# TORCH_NPU_SITE: an unpacked torch_npu wheel, for runs under MindSpeed.
PATHS = [str(ROOT), str(TESTS), *filter(None, [os.environ.get("TORCH_NPU_SITE")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1"}


def wheel() -> Path:
    """Return the folder of the unpacked wheel of megatron-core 0.17.1; skip the test without it."""
    command = ["bash", str(ROOT / "ci" / "megatron_wheel.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]
    if done.returncode == 77:
        pytest.skip(last)
    assert done.returncode == 0, last
    return Path(last)


def python(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def complete(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0, output[-3000:]


def make_data(folder: Path) -> None:
    """Pack the rows of the demo with its own tokenizer."""
    demo = ROOT / "examples" / "demo"
    complete(python(str(demo / "make_data.py"), str(folder / "demo.json")))
    complete(python(str(demo / "make_tokenizer.py"), str(folder / "demo.json"), str(folder / "tokenizer")))
    flags = "--handler-name AlpacaStyleInstructionHandler --prompt-type qwen --append-eod --seq-length 256 --pack"
    words = ["--input", str(folder / "demo.json"), "--tokenizer-name-or-path", str(folder / "tokenizer")]
    words += [*flags.split(), "--neat-pack", "--tokenizer-type", "PretrainedFromHF"]
    complete(python("preprocess_data.py", *words, "--output-prefix", str(folder / "packed")))


def run_cases(folder: Path, site: Path, script: Path, names: list[str], mindspeed: Path | None = None) -> None:
    """Run the cases in Megatron and, at the same time, those of our own loop that they are compared with.

    Args:
        folder: folder of the data and all results.
        site: folder that holds `megatron`.
        script: training script.
        names: names of the cases.
        mindspeed: folder that holds `mindspeed`; the environment names a torch_npu wheel (ci/megatron_checkout.sh).
    """
    others = [name for name in names if CASES[name].own is not None and not CASES[name].finetunes]
    references = list(dict.fromkeys(CASES[name].own or name for name in others))
    program = str(TESTS / "megatron_program.py")
    if not (folder / "start").exists():
        complete(python(program, str(folder), "own"))
    own = python(program, str(folder), "own", *references)
    under = [f"mindspeed={mindspeed}"] if mindspeed is not None else []
    theirs = python(program, str(folder), str(site), str(script), *under, *names)
    complete(own)
    complete(theirs)
    # These load what Megatron has saved.
    finetuned = [name for name in names if CASES[name].finetunes]
    if finetuned:
        complete(python(program, str(folder), "own", *finetuned))
    failed = sorted(folder.glob("*.failed"))
    logs = [log for path in failed for log in folder.glob(f"{path.stem}.*.log")]
    assert not failed, "\n\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in logs)


def differences(folder: Path, name: str) -> dict[str, float]:
    """Return the largest relative difference of loss, gradient norm and validation loss from our own loop."""
    theirs = json.loads((folder / f"{name}.json").read_text())
    lines = (folder / "own" / (CASES[name].own or name) / "metrics.jsonl").read_text().splitlines()
    own = [json.loads(line) for line in lines]
    steps = {str(line["iteration"]): line for line in own if line["kind"] == "train"}
    evaluated = [line["loss"] for line in own if line["kind"] == "eval"]
    pairs = [(step, steps[number]) for number, step in theirs["train"].items()]
    assert len(pairs) == CASES[name].stop - (2 if CASES[name].loads and not CASES[name].finetunes else 0)
    found = {
        "loss": max(abs(step[0] / line["loss"] - 1) for step, line in pairs),
        "norm": max(abs(step[1] / line["grad_norm"] - 1) for step, line in pairs),
    }
    after = [loss for loss in theirs["eval"] if loss is not None]
    return found | ({"valid": abs(after[-1] / evaluated[-1] - 1)} if after and evaluated else {})


def print_differences(folder: Path, found: dict[str, dict[str, float]]) -> None:
    """Print a line for each case: its differences, and the seconds of its run in Megatron."""
    for name, each in found.items():
        seconds = float((folder / f"{name}.seconds").read_text())
        print(f"{name:34} " + "  ".join(f"{key} {value:.1e}" for key, value in each.items()) + f"  {seconds:.1f} s")


def assert_equal(found: dict[str, dict[str, float]], control: str) -> None:
    """Check that all cases equal our own loop, except for the negative control, which has no boundaries."""
    assert found[control]["loss"] > 1e-4 and found[control]["norm"] > 1e-3, found[control]
    assert max(max(each.values()) for name, each in found.items() if name != control) < 1e-6, found
