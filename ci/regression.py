"""Run a suite of short training runs and compare them with baselines.

    python ci/regression.py --suite cpu|cuda|npu

ci/regression/cases.json defines the cases and tolerances: the scripts of examples/ with fewer layers, a parallel
layout and a number of steps. ci/regression/baselines.json contains the baselines: loss and gradient norm of every
step, seconds per step and peak memory. A table is printed at the end. The exit status is 1 if a case failed, exceeded
its tolerances or has no baseline. `--record` also writes the results as the new baseline.

The data is that of examples/demo, generated here and packed with --neat-pack. The weights are random. Run the npu
suite first on a new cluster.
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
DIRECTORY = Path(__file__).parent / "regression"
# Flags of the scripts that are removed: cases start from random weights and save nothing.
REMOVED_FLAGS = ("--load", "--save", "--finetune", "--save-interval", "--no-load-optim", "--no-load-rng")
REMOVED_FLAGS += ("--no-save-optim", "--no-save-rng", "--stage")

Flags = dict[str, Any]
OF_EVERY_CASE: Flags = {**dict.fromkeys(REMOVED_FLAGS), "--no-save-model": True}


def flags_of_script(script: Path, environment: dict[str, str]) -> list[str]:
    """Return the arguments that a script passes to pretrain_gpt.py, by running it with stubs of its programs."""
    with tempfile.TemporaryDirectory() as folder:
        recorded = Path(folder, "arguments")
        torchrun = Path(folder, "torchrun")
        torchrun.write_text(f"#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" >'{recorded}'\n")
        torchrun.chmod(0o755)
        # The script checks its command first; its paths do not exist.
        check = Path(folder, "python")
        check.write_text("#!/usr/bin/env bash\n")
        check.chmod(0o755)
        path = f"{folder}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", str(script)], cwd=folder, env={**os.environ, **environment, "PATH": path}, check=True)
        arguments = recorded.read_text().split("\0")[:-1]
    return arguments[next(i for i, word in enumerate(arguments) if word.endswith("pretrain_gpt.py")) + 1 :]


def with_changes(arguments: list[str], changes: Flags) -> list[str]:
    """Change flags of a command line.

    Args:
        arguments: the command line.
        changes: flag -> None to remove it, True to set it without a value, or its value. New flags are appended.
    """
    result: list[str] = []
    start = 0
    while start < len(arguments):
        end = start + 1
        while end < len(arguments) and not arguments[end].startswith("--"):
            end += 1
        if arguments[start] not in changes:
            result += arguments[start:end]
        start = end
    for flag, value in changes.items():
        if value is not None:
            result += [flag] if value is True else [flag, str(value)]
    return result


def prepare(folder: Path, seq_length: int) -> Path:
    """Create the tokenizer and the packs of the demo data unless they exist, and return the prefix of the packs."""
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
    """Train one case and return its results, or an error message under the key 'error'."""
    environment = {"DATA_PATH": "data", "TOKENIZER_MODEL": str(folder / "tokenizer")}
    environment |= {"CKPT_LOAD_DIR": "none", "CKPT_SAVE_DIR": "none"}
    script = flags_of_script(ROOT / case["script"], environment)
    changes: Flags = OF_EVERY_CASE | case["flags"] | {"--train-iters": case["steps"]}
    arguments = with_changes(script, changes)
    prefix = prepare(folder, int(arguments[arguments.index("--seq-length") + 1]))
    run = folder / "".join(letter if letter.isalnum() else "_" for letter in f"{suite} {name}")
    for old in run.glob("metrics.jsonl"):
        old.unlink()
    last: Flags = {"--data-path": prefix, "--run-dir": run, "--device": suite, "--log-interval": 1, "--eval-iters": 0}
    last |= {"--neat-pack": True, "--prompt-type": "qwen"}
    last["--lr-decay-iters"] = 1000  # the learning rates do not depend on the number of steps
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(case["processes"]), "pretrain_gpt.py", *with_changes(arguments, last)]
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
    """Convert a value of metrics.jsonl, where null means a value that is not finite."""
    return float("nan") if figure is None else figure


def compare(measured: dict[str, Any], baseline: dict[str, Any] | None, bounds: dict[str, float | None]) -> list[str]:
    """Return the problems of a case; the list is empty if all results are within their tolerances."""
    if "error" in measured:
        return [measured["error"]]
    if baseline is None:
        return ["no baseline: check the results, then run again with --record"]
    problems = []
    for figure in ("loss", "grad_norm"):
        bound, ours, theirs = bounds[figure], measured[figure], baseline[figure]
        if len(ours) != len(theirs):
            problems.append(f"{figure}: {len(ours)} steps, baseline {len(theirs)}")
            continue
        if bound is None:
            continue
        for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), 1):
            if not abs(mine - other) <= bound * abs(other):  # not ">", so that NaN fails as well
                problems.append(f"{figure} of step {step}: {mine:.6f}, baseline {other:.6f} ± {bound:g} of it")
                break
    for figure in ("step_seconds", "peak_memory"):
        factor = bounds[figure]
        if factor is not None and measured[figure] > factor * baseline[figure]:
            problems.append(f"{figure}: {measured[figure]:.4g}, baseline {baseline[figure]:.4g} × {factor:g}")
    return problems


def print_table(rows: list[tuple[str, dict[str, Any], dict[str, Any] | None, list[str]]]) -> None:
    """Print one line for each case, followed by its problems."""
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
    """Run the suite, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", choices=("cpu", "cuda", "npu"), required=True)
    parser.add_argument("--case", action="append", help="run only this case; may be repeated")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "regression", help="directory for data and runs")
    parser.add_argument("--baselines", type=Path, default=DIRECTORY / "baselines.json")
    parser.add_argument("--record", action="store_true", help="write the results as the new baseline")
    options = parser.parse_args()
    data = json.loads((DIRECTORY / "cases.json").read_text())
    cases = data["suites"][options.suite]
    unknown = set(options.case or ()) - set(cases)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))} in the suite {options.suite}; there are {', '.join(cases)}")
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
        temporary = options.baselines.with_suffix(".new")
        temporary.write_text(json.dumps(baselines, indent=1) + "\n")
        temporary.replace(options.baselines)
        print(f"recorded in {options.baselines}")
    return 1 if any(problems for *_, problems in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
