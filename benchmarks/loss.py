"""Time the loss, output layer included, forward and backward: dense, chunked, and as Hugging Face's Trainer does it.

    python benchmarks/loss.py                       two vocabularies, two hidden sizes, three shares of trained tokens
    python benchmarks/loss.py --check               status 1 if the chunked loss is slower than its goals
    python benchmarks/loss.py --training-steps      training steps of benchmarks/training.py, dense and chunked in turns
    python benchmarks/loss.py --device cuda --dtype bf16 --slots 8192

Entries:

    dense          megatron-core's output layer and vocab-parallel cross entropy for every slot, one rank
    chunked N      `chunked_cross_entropy` with N trained slots per chunk
    Hugging Face   lm_head and transformers' ForCausalLMLoss, as in Trainer; needs the package transformers

All entries have the same hidden states, weight and labels. The gradient of the weight of the first two is added to a
float32 main_grad, as under DistributedDataParallel. Entries are timed in turns, and the figure is the fastest of
--rounds. The number of slots is chosen so that one dense pass takes at most --seconds, and printed.

Peak memory is what a pass adds to the memory of the process, from /proc on Linux or the allocator of the device.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mindspeed_llm.arguments.bounds import AUTO
from mindspeed_llm.devices import apply_patches

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARES = (0.10, 0.38, 1.0)
VOCABULARIES = (32_000, 152_064)
HIDDEN_SIZES = (896, 3_584)
# Time of the chunked loss ÷ time of the dense one, at most.
GOALS = {0.10: 0.3, 0.38: 0.7, 1.0: 1.4}
DENSE, HUGGING_FACE = "dense", "Hugging Face"
# As `training_parts.time_by_purpose` names them.
LOSS_PURPOSES = ("matrix products: output layer", "cross entropy, embedding")


class Case:
    """Inputs of one vocabulary, hidden size and share of trained slots, and a pass of each entry.

    Args:
        slots: T.
        hidden: size of the hidden states.
        vocabulary: rows of the output weight.
        share: trained slots ÷ slots.
        options: the command line.
    """

    def __init__(self, slots: int, hidden: int, vocabulary: int, share: float, options: argparse.Namespace) -> None:
        where = {"device": options.device, "dtype": DTYPES[options.dtype]}
        draw = np.random.default_rng(0)
        self.slots = np.sort(draw.choice(slots, round(slots * share), replace=False))
        self.states = torch.randn(slots, 1, hidden, **where).requires_grad_()
        self.weight = torch.nn.Parameter(torch.randn(vocabulary, hidden, **where) * 0.02)
        self.main_grad = torch.zeros(vocabulary, hidden, device=options.device)
        self.labels = torch.randint(vocabulary, (1, slots), device=options.device)
        self.weights = torch.zeros(1, slots, device=options.device)
        self.weights[0, torch.from_numpy(self.slots)] = 1.0

    def dense(self) -> None:
        """Compute the loss of every slot, as megatron-core does."""
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        losses = vocab_parallel_cross_entropy(self.states @ self.weight.t(), self.labels.t().contiguous())
        (losses.t() * self.weights).sum().backward()
        assert self.weight.grad is not None
        self.main_grad.add_(self.weight.grad)

    def chunked(self, rows: int) -> Callable[[], None]:
        """Return a pass of the chunked loss with so many trained slots per chunk."""
        from mindspeed_llm.model.chunked_cross_entropy import OutputLayer, TrainedSlots, chunked_cross_entropy

        layer = OutputLayer(self.weight.shape[0], rows)

        def run() -> None:
            self.weight.main_grad = self.main_grad  # type: ignore[attr-defined]
            trained = TrainedSlots(self.slots, self.labels, self.weights)
            chunked_cross_entropy(self.states, self.weight, trained, layer)[0].backward()
            del self.weight.main_grad

        return run

    def hugging_face(self) -> None:
        """Compute the loss as transformers' models do with labels, untrained ones -100."""
        from transformers.loss.loss_utils import ForCausalLMLoss

        labels = torch.where(self.weights > 0, self.labels, -100)
        logits = (self.states[:, 0] @ self.weight.t())[None]
        # The labels are those of the slots already.
        ForCausalLMLoss(logits, labels=None, vocab_size=self.weight.shape[0], shift_labels=labels).backward()

    def entries(self, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
        """Return a pass of each entry by its name."""
        found: dict[str, Callable[[], None]] = {DENSE: self.dense}
        found |= {f"chunked {rows}": self.chunked(rows) for rows in options.chunks}
        try:
            import transformers  # noqa: F401
        except ImportError:
            return found
        return found | {HUGGING_FACE: self.hugging_face}

    def clear(self) -> None:
        """Free the gradients of a pass."""
        self.states.grad = self.weight.grad = None


def synchronize(device: str) -> None:
    """Wait until the device is idle."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def peak_bytes(run: Callable[[], None], device: str) -> int:
    """Return what a pass adds to the memory of the process or device, at its peak."""
    if device != "cpu":
        module = getattr(torch, device)
        module.reset_peak_memory_stats()
        before = module.memory_allocated()
        run()
        return int(module.max_memory_allocated() - before)
    ctypes.CDLL(None).malloc_trim(0)  # else a pass reuses memory that an earlier one has freed
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def status_bytes(name: str) -> int:
    """Return a size from /proc/self/status in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def time_entries(case: Case, options: argparse.Namespace) -> dict[str, tuple[float, int]]:
    """Return seconds and peak bytes of each entry."""
    entries = case.entries(options)
    memory = {}
    for name, run in entries.items():
        memory[name] = peak_bytes(run, options.device)
        case.clear()
    seconds = dict.fromkeys(entries, float("inf"))
    for _ in range(options.rounds):
        for name, run in entries.items():
            synchronize(options.device)
            start = time.perf_counter()
            run()
            synchronize(options.device)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            case.clear()
    return {name: (seconds[name], memory[name]) for name in entries}


def choose_slots(hidden: int, vocabulary: int, options: argparse.Namespace) -> int:
    """Return as many slots as one dense pass computes in --seconds, at most 4,096."""
    if options.slots:
        return int(options.slots)
    case = Case(64, hidden, vocabulary, 1.0, options)
    case.dense()
    start = time.perf_counter()
    case.dense()
    synchronize(options.device)
    per_slot = (time.perf_counter() - start) / 64
    return int(np.clip(options.seconds / per_slot // 128 * 128, 128, 4096))


def training_steps(rounds: int) -> None:
    """Time complete training steps with the dense and with the chunked loss in turns, and the share of the loss."""
    import training_parts
    import training_steps as own

    samples = own.Samples.planned(own.alpaca_like(400), 4096)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {}
        for name, size in ((DENSE, 0), ("chunked", AUTO)):
            directory = Path(folder) / name
            directory.mkdir()
            trainers[name] = own.training_methods(directory, samples, "a", size)["a"]
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for turn in range(rounds + 1):
            for name, trainer in trainers.items():
                spent = trainer.step().seconds
                if turn:  # the first step of each is a warm-up
                    seconds[name].append(spent)
        ratios = [one / other for one, other in zip(seconds["chunked"], seconds[DENSE], strict=True)]
        print(
            f"vocabulary {own.VOCABULARY:,}, hidden size {own.HIDDEN}, {own.LAYERS} layers, 4,096 slots, 60 % trained"
        )
        for name, trainer in trainers.items():
            by_purpose, _ = training_parts.time_by_purpose(trainer, 2)
            loss = sum(by_purpose.get(purpose, 0) for purpose in LOSS_PURPOSES) / sum(by_purpose.values())
            print(f"{name:<8} {statistics.median(seconds[name]):.3f} s a step, the loss is {loss:.0%} of it")
        print(f"chunked ÷ dense {statistics.median(ratios):.3f}, median of {rounds} pairs")


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "npu"))
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--slots", type=int, help="slots of the micro-batch, instead of --seconds")
    parser.add_argument("--seconds", type=float, default=10, help="longest dense pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=HIDDEN_SIZES)
    parser.add_argument("--training-steps", action="store_true", help="time complete training steps instead")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Print the table; return 1 if --check is given and a goal is missed."""
    options = read_options()
    if options.threads:
        torch.set_num_threads(options.threads)
    apply_patches(options.device)
    from megatron.core import parallel_state

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    if options.training_steps:
        training_steps(options.rounds)
        return 0
    missed = []
    for vocabulary in options.vocabularies:
        for hidden in options.hidden_sizes:
            slots = choose_slots(hidden, vocabulary, options)
            print(f"\nvocabulary {vocabulary:,}, hidden size {hidden:,}, {slots:,} slots, {options.dtype}")
            print(f"{'trained':>8}  {'entry':<14}{'seconds':>9}{'÷ dense':>9}{'peak MiB':>10}")
            for share in SHARES:
                figures = time_entries(Case(slots, hidden, vocabulary, share, options), options)
                for name, (seconds, memory) in figures.items():
                    ratio = seconds / figures[DENSE][0]
                    print(f"{share:>8.0%}  {name:<14}{seconds:>9.3f}{ratio:>9.2f}{memory / 2**20:>10,.0f}", flush=True)
                ratio = figures["chunked 512"][0] / figures[DENSE][0] if "chunked 512" in figures else 0.0
                if ratio > GOALS[share]:
                    missed.append(f"{vocabulary:,} × {hidden:,} at {share:.0%}: {ratio:.2f} > {GOALS[share]}")
    for line in missed:
        print(f"MISSED: {line}")
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
