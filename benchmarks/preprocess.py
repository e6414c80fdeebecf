"""Benchmark preprocessing from rows to packed files against the tokenizer alone and against other programs.

    python benchmarks/preprocess.py                                 # the tables for 50,000 and 5,000 rows
    python benchmarks/preprocess.py --slope                         # also 500,000 rows: time per row, time of a start
    python benchmarks/preprocess.py --slope --earlier CHECKOUT      # beside another commit of this project
    python benchmarks/preprocess.py --trl-python VENV/bin/python --llamafactory-python VENV2/bin/python

Each program runs in a separate process. The programs run in turn, each once per round, so that other load on the
machine affects all of them. Wall time is the minimum over the rounds. CPU time is user + system time of the process
and its children, also the minimum over the rounds; compare CPU times on a machine that is not idle.

    this project      preprocess_data.py from start to exit: imports, rows, packs, hashes, table, plot
    earlier           the same program of another checkout (--earlier)
    reference         this project with --tokenizer-backend tokenizers
    tokenizer alone   encode_batch_fast of the Rust library on the rendered texts of the same rows; only its loop,
                      without startup, loading the tokenizer and reading the rows; with the threads of the library

The tokenizer is the Qwen tokenizer in ../shared if it exists, or --tokenizer DIR. TRL and LLaMA-Factory prepare the
same rows as they do before training (chat template, tokens, labels, packing), in the environments given by the flags.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from instruction_rows import alpaca_rows, sharegpt_rows, write_rows

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT.parent / "shared" / "assets" / "qwen25-tokenizer"
PEERS = Path(__file__).with_name("preprocess_peers.py")
SEQ_LENGTH = 4096
PROGRAM = "preprocess_data.py"
HANDLERS = {"alpaca": "AlpacaStyleInstructionHandler", "sharegpt": "SharegptStyleInstructionHandler"}


@dataclass
class Measured:
    """Results of one program over several rounds.

    Attributes:
        wall: minimum wall time in seconds.
        cpu: minimum CPU time in seconds.
        memory: peak memory in MiB.
        reported: minimum of each figure that the program itself reported.
        error: last line of stderr if the program failed, else empty.
    """

    wall: float = float("inf")
    cpu: float = float("inf")
    memory: float = 0.0
    reported: dict[str, float] = field(default_factory=dict)
    error: str = ""


def measure(command: list[str], into: Measured) -> None:
    """Run `command` and update the results; the last line of its output may be a JSON object of reported figures."""
    checkout = Path(command[1]).parent if Path(command[1]).name == PROGRAM else ROOT
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)  # also returns CPU time and memory, including children
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        lines = out.read().splitlines()
        if process.returncode != 0:
            into.error = (err.read().strip().splitlines() or ["no message"])[-1][:200]
            return
    into.wall, into.cpu = min(into.wall, wall), min(into.cpu, usage.ru_utime + usage.ru_stime)
    into.memory = max(into.memory, usage.ru_maxrss / 1024)
    if lines and lines[-1].startswith("{"):
        for name, value in json.loads(lines[-1]).items():
            into.reported[name] = min(into.reported.get(name, float("inf")), value)


def preprocess_command(
    kind: str, data: Path, tokenizer: Path, folder: Path, workers: int, checkout: Path = ROOT
) -> list[str]:
    """Return the command line of preprocess_data.py."""
    return [
        sys.executable, str(checkout / PROGRAM), "--input", str(data), "--handler-name", HANDLERS[kind],
        "--tokenizer-name-or-path", str(tokenizer), "--prompt-type", "qwen", "--pack", "--neat-pack",
        "--seq-length", str(SEQ_LENGTH), "--workers", str(workers), "--output-prefix", str(folder / kind / "set"),
    ]  # fmt: skip


def tokens_of(folder: Path, kind: str) -> int:
    manifest = json.loads((folder / kind / "set_packed_manifest.json").read_text())
    return int(manifest["tokens"])


def own_commands(kind: str, data: Path, options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return the commands of this project: as it is, with the reference library, and of --earlier."""
    command = preprocess_command(kind, data, options.tokenizer, folder, options.workers)
    commands = {"this project": command, "reference": [*command, "--tokenizer-backend", "tokenizers"]}
    if options.earlier is not None:
        earlier = preprocess_command(kind, data, options.tokenizer, folder, options.workers, options.earlier)
        # Commits before --log-interval lost its effect write a line every 100 rows.
        commands["earlier"] = [*earlier, "--log-interval", "100000"]
    return commands


def compare(kind: str, count: int, options: argparse.Namespace, folder: Path) -> None:
    """Run all programs on `count` rows of one kind and print their table."""
    rows = {"alpaca": alpaca_rows, "sharegpt": sharegpt_rows}[kind](count)
    data = write_rows(folder / f"{kind}.json", rows)
    workers = str(options.workers)
    peer = [str(PEERS), kind, str(data), str(options.tokenizer), workers]
    commands = {
        **own_commands(kind, data, options, folder),
        "tokenizer alone": [sys.executable, *peer, "tokenizer"],
    }
    missing = []
    for name, python in (("TRL", options.trl_python), ("LLaMA-Factory", options.llamafactory_python)):
        if python is None:
            missing.append(name)
        else:
            commands[name] = [str(python), *peer, name.lower()]
    results = {name: Measured() for name in commands}
    for number in range(options.rounds):
        for name, command in commands.items():
            # TRL and LLaMA-Factory take much longer, so they run in the first round only.
            already_measured = name in ("TRL", "LLaMA-Factory") and number > 0
            if not already_measured and not results[name].error:
                measure(command, results[name])
    alone, mine = results["tokenizer alone"], results["this project"]
    if mine.error:
        sys.exit(f"this project: {mine.error}")
    size = data.stat().st_size / 1e6
    print(f"\n{count:,} {kind}-like rows, {size:.1f} MB, {tokens_of(folder, kind):,} tokens, {workers} workers, "
          f"minimum of {options.rounds} rounds")  # fmt: skip
    print(f"{'':18}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}{'wall ratio':>12}{'CPU ratio':>11}")
    base_wall, base_cpu = alone.reported["encode_wall"], alone.reported["encode_cpu"]
    print(f"{'tokenizer alone':18}{base_wall:9.2f}{base_cpu:9.2f}{'':10}{1:12.2f}{1:11.2f}")
    for name, result in results.items():
        if name == "tokenizer alone":
            continue
        if result.error:
            print(f"{name:18}failed: {result.error}")
            continue
        print(f"{name:18}{result.wall:9.2f}{result.cpu:9.2f}{result.memory:10.0f}"
              f"{result.wall / base_wall:12.2f}{result.cpu / base_cpu:11.2f}")  # fmt: skip
    for name in missing:
        print(f"{name:18}not installed (--{name.lower().replace('-', '')}-python)")


def slope(options: argparse.Namespace, folder: Path) -> None:
    """Print time and peak memory for two numbers of rows, and the line through both."""
    counts = (options.rows, 10 * options.rows)
    files = {count: write_rows(folder / f"alpaca-{count}.json", alpaca_rows(count)) for count in counts}
    results: dict[str, dict[int, Measured]] = {}
    for _ in range(options.rounds):
        for count in counts:
            for name, command in own_commands("alpaca", files[count], options, folder).items():
                into = results.setdefault(name, {}).setdefault(count, Measured())
                measure(command, into)
                if into.error:
                    sys.exit(f"{name}: {into.error}")
    print(f"\nalpaca-like rows, {options.workers} workers, minimum of {options.rounds} rounds; seconds and MiB")
    heads = "".join(f"{f'{count:,} rows':>14}{'MiB':>6}" for count in counts)
    print(f"{'':14}{heads}{'per 10,000 rows':>17}{'start':>8}")
    for name, of_count in results.items():
        small, large = (of_count[count] for count in counts)
        per_row = (large.wall - small.wall) / (counts[1] - counts[0])
        cells = "".join(f"{result.wall:14.2f}{result.memory:6.0f}" for result in (small, large))
        print(f"{name:14}{cells}{1e4 * per_row:17.3f}{small.wall - per_row * counts[0]:8.2f}", flush=True)


def start(options: argparse.Namespace, folder: Path) -> None:
    """Print the time of --help and the time until a run prints its first line."""
    program = [sys.executable, str(ROOT / PROGRAM)]
    seconds, first = [], []
    data = write_rows(folder / "alpaca.json", alpaca_rows(5_000))
    for _ in range(options.rounds):
        started = time.perf_counter()
        subprocess.run([*program, "--help"], stdout=subprocess.DEVNULL, check=True)
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        command = preprocess_command("alpaca", data, options.tokenizer, folder, options.workers)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            assert run.stderr is not None
            run.stderr.readline()
            first.append(time.perf_counter() - started)
            run.stderr.read()
    print(f"\n--help {min(seconds):.2f} s, first line of a run {min(first):.2f} s")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000, help="Alpaca-like rows")
    parser.add_argument("--conversations", type=int, default=5_000, help="ShareGPT-like rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, metavar="DIR")
    parser.add_argument("--trl-python", type=Path, metavar="PYTHON", help="Python of an environment with TRL")
    parser.add_argument(
        "--llamafactory-python", type=Path, metavar="PYTHON", help="Python of an environment with LLaMA-Factory"
    )
    parser.add_argument("--earlier", type=Path, metavar="DIR", help="another checkout of this project")
    parser.add_argument("--slope", action="store_true", help="also measure ten times the rows, and fit a line")
    options = parser.parse_args()
    if not options.tokenizer.is_dir():
        sys.exit(f"no tokenizer at {options.tokenizer}; give a folder with tokenizer.json: --tokenizer DIR")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(options, folder)
        compare("alpaca", options.rows, options, folder)
        compare("sharegpt", options.conversations, options, folder)
        if options.slope:
            slope(options, folder)


if __name__ == "__main__":
    main()
