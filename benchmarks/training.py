"""Benchmark training on packs against five other ways to train on the same samples, in useful tokens per second.

    python benchmarks/training.py --peers-python VENV/bin/python      everything; VENV also has trl and accelerate
    python benchmarks/training.py --parts contest --leave-out cef     only a part
    python benchmarks/training.py --parts lora --peers-python …       LoRA; VENV also has peft
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

The part "lora" measures LoRA (r 16, all linear layers) with a model of 58 million parameters on the same samples:

    (g) LoRA on packs with boundaries       (h) Hugging Face's Trainer as in (e), with peft
    (a) full fine-tuning on the same packs  (i) TRL's SFTTrainer as in (f), with peft

Each method is a process of its own, whose peak memory is reported, and each step is compared with the steps of (g)
before and after it. B is 0 at the start, so (g) and (a) must have the same loss in the first step.

training_parts.py measures in addition: (a) against (b) on 16k packs of 200-token samples, the cost of attention against
Σ len², and a profile of (a).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mindspeed_llm.devices import apply_patches, select_device

if TYPE_CHECKING:
    from training_processes import Peer

NAMES = {
    "a": "packs with boundaries",
    "b": "packs with a dense mask",
    "c": "one sample a row, padded",
    "d": "grouped by length",
    "e": "Hugging Face's Trainer, padded",
    "f": "TRL's SFTTrainer, packing",
}
PEERS = {"e": "hugging-face", "f": "trl"}
LORA_NAMES = {
    "g": "LoRA on packs",
    "a": "full fine-tuning on packs",
    "h": "Hugging Face's Trainer, peft, padded",
    "i": "TRL's SFTTrainer, peft, packing",
}
LORA_KINDS = {"g": "lora", "a": "full", "h": "hugging-face", "i": "trl"}
SEQ_LENGTH = 4096
MAX_LOSS_DIFFERENCE = 1e-5  # relative; ten times as much for the gradient norm
PARTS = ("contest", "long", "growth", "profile", "lora")
CLOCKS = {"elapsed": time.perf_counter, "processor": time.process_time}
GOALS = {"packing": 0.95, "peers": 1.5, "dense": 5.0, "lora peers": 2.0}
LIMITS = {"lora step": 0.88}


@dataclass
class Times:
    """Measured steps of one method.

    Attributes:
        useful: useful tokens per second of each step.
        slots: slots per second of each step.
        ratios: useful tokens per second of the steps of the reference method, (a) or with LoRA (g), before and after,
            divided by those of this step.
        slot_ratios: the same, divided by the slots per second of this step, which is its useful tokens ÷ fill.
    """

    useful: list[float] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    slot_ratios: list[float] = field(default_factory=list)


Rates = tuple[float, float]
Step = Callable[[], Rates]


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


def measure_interleaved(steps: dict[str, Step], rounds: int, reference: str = "a") -> dict[str, Times]:
    """Measure `rounds` steps of each method, each between two steps of the reference method.

    Neighboring steps run at the same speed of the machine, so the ratios are stable even if that speed changes.
    """
    times = {name: Times() for name in steps}

    def measure(name: str) -> Rates:
        useful, slots = steps[name]()
        times[name].useful.append(useful)
        times[name].slots.append(slots)
        return useful, slots

    for _ in range(rounds):
        before = measure(reference)
        for name in steps:
            if name == reference:
                continue
            useful, slots = measure(name)
            after = measure(reference)
            # The mean of two speeds over equal work is the harmonic mean.
            mean_of_reference = 2 / (1 / before[0] + 1 / after[0])
            times[name].ratios.append(mean_of_reference / useful)
            times[name].slot_ratios.append(mean_of_reference / slots)
            before = after
    return times


def contest(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure (a) to (f), print the table and return the values that have goals."""
    import training_steps as own
    from training_processes import peers_of, write_samples

    wanted = [name for name in NAMES if name not in options.leave_out]
    samples = own.Samples.planned(own.alpaca_like(40 * (options.packs + 1)), SEQ_LENGTH)
    trainers = own.training_methods(folder, samples, "".join(name for name in wanted if name not in PEERS))
    write_samples(samples, folder / "samples.npz", lora=False)
    kinds = {name: kind for name, kind in PEERS.items() if name in wanted}
    peers, missing = peers_of(options, folder / "samples.npz", kinds)
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
    print_table(times, NAMES, "a")
    print_peers(peers, missing, NAMES)
    values = {}
    if "c" in times:
        values["packing"] = statistics.median(times["c"].slot_ratios)
    if peers:
        values["peers"] = min(statistics.median(times[name].ratios) for name in peers)
    return values


def print_table(times: dict[str, Times], names: dict[str, str], reference: str) -> None:
    """Print medians and ratios of all methods."""
    print(f"\n{'':40} useful tokens/s   slots/s    fill   ({reference}) ÷ it     minimum to maximum")
    for name, own_times in times.items():
        useful, slots = statistics.median(own_times.useful), statistics.median(own_times.slots)
        ratios = own_times.ratios or [1.0]
        spread = f"{min(ratios):.2f} … {max(ratios):.2f}"
        figures = f"{useful:12,.0f} {slots:10,.0f} {useful / slots:7.1%} {statistics.median(ratios):10.2f}"
        print(f"  ({name}) {names[name]:36} {figures}      {spread}")


def print_peers(peers: dict[str, Peer], missing: dict[str, str], names: dict[str, str]) -> None:
    """Print what the processes are, and why others do not run."""
    for name, peer in peers.items():
        print(f"  ({name}) is {peer.versions}")
    for name, reason in missing.items():
        print(f"  ({name}) {names[name]}: skipped, {reason}")


def lora_contest(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure LoRA on packs, full fine-tuning, and LoRA of the peers; print and return the values that have goals.

    Raises:
        SystemExit: (g) or (a) does not run, or their losses of the first step differ.
    """
    import training_steps as own
    from training_processes import peers_of, write_samples

    samples = own.Samples.planned(own.alpaca_like(40 * (options.packs + 1)), SEQ_LENGTH)
    path = folder / "lora.npz"
    write_samples(samples, path, lora=True)
    kinds = {name: kind for name, kind in LORA_KINDS.items() if name in "ga" or name not in options.leave_out}
    peers, missing = peers_of(options, path, kinds)
    try:
        for name in "ga":
            if name in missing:
                raise SystemExit(f"({name}) {LORA_NAMES[name]}: {missing[name]}")
        for peer in peers.values():
            peer.step()  # warm-up
        losses = [float(peers[name].last["loss"]) for name in "ga"]
        if abs(losses[0] / losses[1] - 1) > MAX_LOSS_DIFFERENCE:
            raise SystemExit(f"(g) does not start from the model of (a): losses {losses[0]:.8f} and {losses[1]:.8f}")
        times = measure_interleaved({name: peer.step for name, peer in peers.items()}, options.rounds, "g")
    finally:
        for peer in peers.values():
            peer.close()
    print_table(times, LORA_NAMES, "g")
    print_peers(peers, missing, LORA_NAMES)
    peaks = ", ".join(f"({name}) {peer.last['peak']:,.0f}" for name, peer in peers.items())
    print(f"  peak memory of the process, MiB: {peaks}")
    # A step of (g) and one of (a) train packs of the same size, so their times have the inverse ratio of their rates.
    values = {"lora step": 1 / statistics.median(times["a"].ratios)}
    if "h" in times:
        values["lora peers"] = statistics.median(times["h"].ratios)
    return values


def goal_report(values: dict[str, float]) -> list[str]:
    """Return one line for each measured goal; missed goals are marked MISSED."""
    labels = {
        "packing": "(a) ÷ ((c) ÷ fill of (c))",
        "peers": "(a) ÷ the best of (e) and (f)",
        "dense": "(a) ÷ (b), 16k packs of 200-token samples",
        "lora step": "step of (g) ÷ step of (a)",
        "lora peers": "(g) ÷ (h)",
    }
    lines = []
    for name, label in labels.items():
        if name not in values:
            continue
        value, is_limit = values[name], name in LIMITS
        goal = LIMITS[name] if is_limit else GOALS[name]
        missed = value > goal if is_limit else value < goal
        at_most = "at most " if is_limit else ""
        lines.append(f"{label}: {value:.2f}, goal {at_most}{goal:g}{', MISSED' if missed else ''}")
    return lines


def main() -> int:
    """Run the benchmark, print the results and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
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
    parser.add_argument("--lora-model", choices=("9M", "58M"), default="58M", help="model of the part lora")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
    options = parser.parse_args()
    parts = options.parts or PARTS
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
        if "lora" in parts:
            if options.lora_model == "58M":
                own.set_shape(own.LARGER)
            print(f"\nLoRA, {own.LAYERS} layers, hidden {own.HIDDEN}, vocabulary {own.VOCABULARY:,}")
            values |= lora_contest(options, Path(folder))
    destroy_process_groups()
    lines = goal_report(values)
    print("\n" + "\n".join(lines))
    return 1 if options.check and any("MISSED" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
