"""Benchmark training on packs against five other ways to train on the same samples, in useful tokens per second.

    python benchmarks/training.py --peers-python VENV/bin/python      everything; VENV also has trl and accelerate
    python benchmarks/training.py --parts contest --leave-out cef     only a part
    python benchmarks/training.py --check                             status 1 if a goal is missed
    python benchmarks/training.py --threads 1 --clock processor       on a machine that is not idle

The model has the structure of Qwen2.5 with 4 layers, hidden size 256 and vocabulary 8,192, in float32 on the CPU. The
sample lengths are like those of Alpaca, in packs of 4,096 slots. All methods run on one rank with the same number of
threads:

    (a) packs with boundaries               (d) grouped by length, four samples padded to their longest
    (b) the same packs with a dense mask    (e) Hugging Face's Trainer: four in random order, padded to their longest
    (c) one sample a row, padded to 4,096   (f) TRL's SFTTrainer with packing

A useful token is a token that is not padding. One step of (a) to (d) trains the samples of one pack, so loss and
gradient norm of the first step must be equal; the program ends if they are not. (e) and (f) train about as many tokens
per step, so that the fixed cost of a step (optimizer, gradient norm) has the same weight for all. The time of a step
includes building its batches. Steps are interleaved: a step of (a), a step of another method, a step of (a), and so
on. A ratio compares a step with the mean of the steps of (a) before and after it; the reported ratio is the median
over all rounds.

training_parts.py measures in addition: (a) against (b) on 16k packs of 200-token samples, the cost of attention against
Σ len², and a profile of (a).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mindspeed_llm.devices import apply_patches, select_device

NAMES = {
    "a": "packs with boundaries",
    "b": "packs with a dense mask",
    "c": "one sample a row, padded",
    "d": "grouped by length",
    "e": "Hugging Face's Trainer, padded",
    "f": "TRL's SFTTrainer, packing",
}
PEERS = {"e": "hugging-face", "f": "trl"}
SEQ_LENGTH = 4096
MAX_LOSS_DIFFERENCE = 1e-5  # relative; ten times as much for the gradient norm
CLOCKS = {"elapsed": time.perf_counter, "processor": time.process_time}
GOALS = {"packing": 0.95, "peers": 1.5, "dense": 5.0}


@dataclass
class Times:
    """Measured steps of one method.

    Attributes:
        useful: useful tokens per second of each step.
        slots: slots per second of each step.
        ratios: useful tokens per second of the steps of (a) before and after, divided by those of this step.
        slot_ratios: the same, divided by the slots per second of this step, which is its useful tokens ÷ fill.
    """

    useful: list[float] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    slot_ratios: list[float] = field(default_factory=list)


Rates = tuple[float, float]
Step = Callable[[], Rates]


class Peer:
    """A process of training_peers.py that trains one step per request.

    Raises:
        LookupError: If a required package is missing or the process does not start.
    """

    def __init__(self, python: str, kind: str, samples: Path, threads: int, clock: str) -> None:
        program = Path(__file__).with_name("training_peers.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, str(program), kind, str(samples), str(threads), clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("PEERS_STDERR") else None,
            text=True,
            env=environment,
        )
        first = self._answer()
        if "missing" in first:
            raise LookupError(first["missing"])
        self.versions: str = first["versions"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = (self.process.stderr.read() if self.process.stderr else "").strip().splitlines()
            raise LookupError(f"it ended with status {self.process.wait()}: {errors[-1] if errors else 'see above'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self) -> Rates:
        """Train one step; return useful tokens and slots per second."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["tokens"] / answer["seconds"], answer["slots"] / answer["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def peers_of(
    options: argparse.Namespace, samples: Any, folder: Path, wanted: str
) -> tuple[dict[str, Peer], dict[str, str]]:
    """Start the processes of (e) and (f); return those that run, and the reason for each that does not, by letter."""
    import training_steps as own

    settings = {
        "model": {
            "vocab_size": own.VOCABULARY, "hidden_size": own.HIDDEN, "intermediate_size": own.FFN,
            "num_hidden_layers": own.LAYERS, "num_attention_heads": own.HEADS, "num_key_value_heads": own.GROUPS,
            "max_position_embeddings": SEQ_LENGTH, "tie_word_embeddings": False, "rms_norm_eps": own.NORM_EPSILON,
            "rope_parameters": {"rope_type": "default", "rope_theta": float(own.ROTARY_BASE)},
        },
        "learning_rate": own.LEARNING_RATE, "weight_decay": own.WEIGHT_DECAY, "rows": own.ROWS,
        "tokens_of_a_step": SEQ_LENGTH, "seq_length": SEQ_LENGTH,
    }  # fmt: skip
    ids, labels = (np.concatenate(parts) for parts in zip(*samples.content(), strict=True))
    path = folder / "samples.npz"
    np.savez(path, ids=ids, labels=labels, lengths=samples.lengths, settings=np.array(json.dumps(settings)))
    running, missing = {}, {}
    for letter in wanted:
        try:
            running[letter] = Peer(options.peers_python, PEERS[letter], path, options.threads, options.clock)
        except LookupError as error:  # noqa: PERF203 - if one is missing, the other is still measured
            missing[letter] = str(error)
    return running, missing


def compare_first_steps(trainers: dict[str, Any]) -> None:
    """Train the first step of each method and check that loss and gradient norm are equal.

    All methods start from the same weights and train the same samples.

    Raises:
        SystemExit: If they differ, because the times would then be of different work.
    """
    first = {name: trainer.step() for name, trainer in trainers.items()}
    print("\nfirst step          loss   gradient norm    tokens       slots     fill")
    for name, done in first.items():
        figures = f"{done.loss:14.8f} {done.grad_norm:15.8f} {done.tokens:9,} {done.slots:11,} "
        print(f"  ({name})   {figures} {done.tokens / done.slots:7.2%}")
    expected = first["a"]
    for name, done in first.items():
        loss, norm = (abs(mine / theirs - 1) for mine, theirs in zip(done[3:], expected[3:], strict=True))
        if done.tokens != expected.tokens or loss > MAX_LOSS_DIFFERENCE or norm > 10 * MAX_LOSS_DIFFERENCE:
            raise SystemExit(
                f"({name}) does not train what (a) trains: loss differs by {loss:.1e}, gradient {norm:.1e}"
            )


def measure_interleaved(steps: dict[str, Step], rounds: int) -> dict[str, Times]:
    """Measure `rounds` steps of each method, each between two steps of (a).

    Neighboring steps run at the same speed of the machine, so the ratios are stable even if that speed changes.
    """
    times = {name: Times() for name in steps}

    def measure(name: str) -> Rates:
        useful, slots = steps[name]()
        times[name].useful.append(useful)
        times[name].slots.append(slots)
        return useful, slots

    for _ in range(rounds):
        before = measure("a")
        for name in steps:
            if name == "a":
                continue
            useful, slots = measure(name)
            after = measure("a")
            # The mean of two speeds over equal work is the harmonic mean.
            mean_of_a = 2 / (1 / before[0] + 1 / after[0])
            times[name].ratios.append(mean_of_a / useful)
            times[name].slot_ratios.append(mean_of_a / slots)
            before = after
    return times


def contest(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure (a) to (f), print the table and return the values that have goals."""
    import training_steps as own

    wanted = [name for name in NAMES if name not in options.leave_out]
    samples = own.Samples.planned(own.alpaca_like(40 * (options.packs + 1)), SEQ_LENGTH)
    trainers = own.training_methods(folder, samples, "".join(name for name in wanted if name not in PEERS))
    peers, missing = peers_of(options, samples, folder, "".join(name for name in wanted if name in PEERS))
    try:
        compare_first_steps(trainers)
        steps: dict[str, Step] = {name: trainer.rates for name, trainer in trainers.items()}
        for name, peer in peers.items():
            peer.step()
            steps[name] = peer.step
        times = measure_interleaved(steps, options.rounds)
    finally:
        for peer in peers.values():
            peer.close()
    print(f"\n{'':37} useful tokens/s   slots/s    fill   (a) ÷ it     minimum to maximum")
    for name, own_times in times.items():
        useful, slots = statistics.median(own_times.useful), statistics.median(own_times.slots)
        ratios = own_times.ratios or [1.0]
        spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
        figures = f"{useful:12,.0f} {slots:10,.0f} {useful / slots:7.1%} {statistics.median(ratios):10.2f}"
        print(f"  ({name}) {NAMES[name]:33} {figures}      {spread}")
    for name, peer in peers.items():
        print(f"  ({name}) is {peer.versions}")
    for name, reason in missing.items():
        print(f"  ({name}) {NAMES[name]}: skipped, {reason}")
    values = {}
    if "c" in times:
        values["packing"] = statistics.median(times["c"].slot_ratios)
    if peers:
        values["peers"] = min(statistics.median(times[name].ratios) for name in peers)
    return values


def goal_report(values: dict[str, float]) -> list[str]:
    """Return one line for each measured goal; missed goals are marked MISSED."""
    labels = {
        "packing": "(a) ÷ ((c) ÷ fill of (c))",
        "peers": "(a) ÷ the best of (e) and (f)",
        "dense": "(a) ÷ (b), 16k packs of 200-token samples",
    }
    return [
        f"{labels[name]}: {values[name]:.2f}, goal {goal:g}{'' if values[name] >= goal else ', MISSED'}"
        for name, goal in GOALS.items()
        if name in values
    ]


def main() -> int:
    """Run the benchmark, print the results and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("contest", "long", "growth", "profile"), help="default: all")
    parser.add_argument("--leave-out", default="", help="letters of methods to skip, such as 'cef'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long-rounds", type=int, default=2, help="rounds of the 16k packs")
    parser.add_argument(
        "--packs", type=int, default=24, help="number of packs of samples, which are trained repeatedly"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch, for all methods")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="elapsed")
    parser.add_argument(
        "--peers-python", default=sys.executable, help="Python of an environment with accelerate and trl"
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
    options = parser.parse_args()
    parts = options.parts or ["contest", "long", "growth", "profile"]
    warnings.simplefilter("ignore")  # the files have no manifest
    torch.set_num_threads(options.threads)
    apply_patches("cpu")
    import training_parts
    import training_steps as own

    own.Trainer.clock = training_parts.clock = CLOCKS[options.clock]
    from mindspeed_llm.training import destroy_process_groups, init_distributed

    init_distributed(own.arguments_of(SEQ_LENGTH), select_device("cpu"))
    shape = f"float32, {own.LAYERS} layers, hidden {own.HIDDEN}"
    print(f"torch {torch.__version__}, {options.threads} threads, {options.clock} time, {shape}")
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "contest" in parts:
            values |= contest(options, Path(folder))
        if "long" in parts:
            values["dense"] = training_parts.long_packs(Path(folder), measure_interleaved, options.long_rounds)
        if "growth" in parts:
            training_parts.growth(options.rounds)
        if "profile" in parts:
            training_parts.profiled(Path(folder), own.Samples.planned(own.alpaca_like(160), SEQ_LENGTH))
    destroy_process_groups()
    lines = goal_report(values)
    print("\n" + "\n".join(lines))
    return 1 if options.check and any("MISSED" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
