"""Run a suite of short trainings and compare them with baselines: python ci/regression.py --suite cpu|cuda|npu

Cases and bounds are data, in ci/regression/cases.json: the scripts of examples/ as users start them, with a few layers,
a layout and a number of steps. Baselines are data too, in ci/regression/baselines.json: loss and gradient norm of every
step, time of a step, memory. At the end there is a table; the status is 1 if a case failed or left its bounds, or has
no baseline. `--record` writes what was measured as the new baseline instead of comparing.

The data are the quickstart's, made here and packed neatly; weights are random. The npu suite is the first thing to run
on a new cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "regression"
# Where a script starts from and saves to: cases start from random weights and save nothing.
NOT_OF_A_CASE = ("--load", "--save", "--finetune", "--save-interval", "--no-load-optim", "--no-load-rng")
NOT_OF_A_CASE += ("--no-save-optim", "--no-save-rng", "--stage")

Flags = dict[str, Any]


def flags_of_script(script: Path, environment: dict[str, str]) -> list[str]:
    """What a script hands to pretrain_gpt.py: it is run with a torchrun that only writes down its arguments."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "arguments")
        torchrun = Path(folder, "torchrun")
        torchrun.write_text(f"#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" >'{written}'\n")
        torchrun.chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", str(script)], cwd=folder, env={**os.environ, **environment, "PATH": path}, check=True)
        given = written.read_text().split("\0")[:-1]
    return given[next(i for i, word in enumerate(given) if word.endswith("pretrain_gpt.py")) + 1 :]


def with_changes(words: list[str], changes: Flags) -> list[str]:
    """Flags left out (None), made bare (True) or given a value; those that are not there yet come last."""
    kept: list[str] = []
    number = 0
    while number < len(words):
        end = number + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        if words[number] not in changes:
            kept += words[number:end]
        number = end
    for flag, value in changes.items():
        if value is not None:
            kept += [flag] if value is True else [flag, str(value)]
    return kept


def prepare(folder: Path, seq_length: int) -> Path:
    """Tokenizer and packs of the demo data at a length, made once; returns the prefix of the packs."""
    prefix = folder / f"packed_{seq_length}"
    if Path(f"{prefix}_packed_manifest.json").exists():
        return prefix
    folder.mkdir(parents=True, exist_ok=True)
    data, tokenizer = str(folder / "demo.json"), str(folder / "tokenizer")
    python = [sys.executable]
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": ROOT}
    if not Path(tokenizer).exists():
        subprocess.run([*python, "examples/demo/make_data.py", data], **quiet)
        subprocess.run([*python, "examples/demo/make_tokenizer.py", data, tokenizer], **quiet)
    flags = f"--tokenizer-type PretrainedFromHF --tokenizer-name-or-path {tokenizer} --prompt-type qwen --append-eod "
    flags += f"--handler-name AlpacaStyleInstructionHandler --seq-length {seq_length} --pack --neat-pack --input {data}"
    subprocess.run([*python, "preprocess_data.py", *flags.split(), "--output-prefix", str(prefix)], **quiet)
    return prefix


def run_case(name: str, case: dict[str, Any], suite: str, folder: Path) -> dict[str, Any]:
    """Train one case; its figures, or what went wrong as 'error'."""
    environment = {"DATA_PATH": "data", "TOKENIZER_MODEL": str(folder / "tokenizer")}
    environment |= {"CKPT_LOAD_DIR": "none", "CKPT_SAVE_DIR": "none"}
    script = flags_of_script(ROOT / case["script"], environment)
    changes: Flags = dict.fromkeys(NOT_OF_A_CASE) | case["flags"] | {"--train-iters": case["steps"]}
    words = with_changes(script, changes)
    prefix = prepare(folder, int(words[words.index("--seq-length") + 1]))
    run = folder / "".join(letter if letter.isalnum() else "_" for letter in f"{suite} {name}")
    for old in run.glob("metrics.jsonl"):
        old.unlink()
    last: Flags = {"--data-path": prefix, "--run-dir": run, "--device": suite, "--log-interval": 1, "--eval-iters": 0}
    last |= {"--neat-pack": True, "--prompt-type": "qwen"}
    last["--lr-decay-iters"] = 1000  # the same learning rates whatever the number of steps
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(case["processes"]), "pretrain_gpt.py", *with_changes(words, last)]
    run.mkdir(parents=True, exist_ok=True)
    log = run / "log"
    variables = {"OMP_NUM_THREADS": "1", **os.environ} if suite == "cpu" else dict(os.environ)
    with log.open("w") as output:
        done = subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        return {"error": f"status {done.returncode}: {log}"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    if len(steps) != case["steps"]:
        return {"error": f"{len(steps)} steps instead of {case['steps']}: {log}"}
    return {
        **{name: [number(step[name]) for step in steps] for name in ("loss", "grad_norm")},
        "step_seconds": sorted(step["step_seconds"] for step in steps)[len(steps) // 2],
        "peak_memory": max(step["peak_memory_bytes"] for step in steps),
    }


def number(figure: float | None) -> float:
    """A figure of metrics.jsonl, where null stands for what is not finite."""
    return float("nan") if figure is None else figure


def compare(measured: dict[str, Any], baseline: dict[str, Any] | None, bounds: dict[str, float | None]) -> list[str]:
    """What is wrong with a case; nothing if all is within its bounds."""
    if "error" in measured:
        return [measured["error"]]
    if baseline is None:
        return ["no baseline: look at the figures, then --record"]
    problems = []
    for figure in ("loss", "grad_norm"):
        bound, ours, theirs = bounds[figure], measured[figure], baseline[figure]
        if len(ours) != len(theirs):
            problems.append(f"{figure}: {len(ours)} steps, baseline {len(theirs)}")
            continue
        if bound is None:
            continue
        for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
            if not abs(mine - other) <= bound * abs(other):  # so that a loss that is no number fails
                problems.append(f"{figure} of step {step}: {mine:.6f}, baseline {other:.6f} ± {bound:g} of it")
                break
    for figure in ("step_seconds", "peak_memory"):
        factor = bounds[figure]
        if factor is not None and measured[figure] > factor * baseline[figure]:
            problems.append(f"{figure}: {measured[figure]:.4g}, baseline {baseline[figure]:.4g} × {factor:g}")
    return problems


def print_table(rows: list[tuple[str, dict[str, Any], dict[str, Any] | None, list[str]]]) -> None:
    """One line for each case, with what was wrong below it."""
    width = max(len(name) for name, *_ in rows)
    head = f"{'last loss':>10}  {'baseline':>10}  {'grad norm':>10}  {'step s':>8}  {'GB':>6}"
    print(f"\n{'case':{width}}  {head}  verdict")
    for name, measured, baseline, problems in rows:
        figures = " " * len(head)
        if "error" not in measured:
            known = f"{baseline['loss'][-1]:10.5f}" if baseline else f"{'–':>10}"
            figures = f"{measured['loss'][-1]:10.5f}  {known}  {measured['grad_norm'][-1]:10.4f}  "
            figures += f"{measured['step_seconds']:8.3f}  {measured['peak_memory'] / 1e9:6.2f}"
        print(f"{name:{width}}  {figures}  {'FAILED' if problems else 'ok'}")
        for problem in problems:
            print(f"{'':{width}}    {problem}")


def main() -> int:
    """Run the suite; the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=("cpu", "cuda", "npu"), required=True)
    parser.add_argument("--case", action="append", help="only this case; may be given several times")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "regression", help="for data and runs")
    parser.add_argument("--baselines", type=Path, default=FOLDER / "baselines.json")
    parser.add_argument("--record", action="store_true", help="write the figures as the new baseline")
    options = parser.parse_args()
    data = json.loads((FOLDER / "cases.json").read_text())
    cases = data["suites"][options.suite]
    unknown = set(options.case or ()) - set(cases)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))} in the suite {options.suite}: {', '.join(cases)}")
    baselines = json.loads(options.baselines.read_text()) if options.baselines.exists() else {}
    known = baselines.setdefault(options.suite, {})
    rows = []
    for name in options.case or cases:
        print(f"{options.suite}: {name}", flush=True)
        measured = run_case(name, cases[name], options.suite, options.folder.resolve())
        if options.record and "error" not in measured:
            known[name] = measured | {"machine": f"{platform.processor() or platform.machine()}, {platform.system()}"}
        rows.append(
            (name, measured, known.get(name), compare(measured, known.get(name), data["bounds"][options.suite]))
        )
    print_table(rows)
    if options.record:
        beside = options.baselines.with_suffix(".new")
        beside.write_text(json.dumps(baselines, indent=1) + "\n")
        beside.replace(options.baselines)
        print(f"recorded in {options.baselines}")
    return 1 if any(problems for *_, problems in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
