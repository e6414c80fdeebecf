"""Time packed attention, forward and backward: every kernel of a device beside four ways to do without it.

    python benchmarks/attention.py                       4k, 32k and 128k tokens: float32 on the CPU
    python benchmarks/attention.py --tokens 4096 --check the CPU's goals: status 1 where they are missed
    python benchmarks/attention.py --device cuda         the same in bfloat16

References, each by torch's scaled_dot_product_attention: every segment alone on contiguous tensors of its own (what
packing cannot beat by much), the dense mask of the pack, one causal call over the whole stream (which mixes samples),
and padding (every segment in a row as long as the longest).

Runs are interleaved: each round times every entry once, and an entry's figure is its fastest round, which other
programs on the machine disturb least. An entry that has used up --budget seconds is left out of further rounds. Its
first round, in memory that is new to it, counts only if it is the only one: if it took more than four budgets. What
costs T² whatever the segments are, the dense mask and the causal call, is timed once for all packs of a length. On a
host with more than 4,096 tokens the causal call and padding are timed with one head in each group and their time
multiplied, for heads cost alike (marked †). What needs more memory than there is, or in padding more work than the
causal call, is not run, and its line says why.
On a busy machine `--clock processor --threads 1` counts processor time.
FLOPs are those of the causal scores that segments need, 3.5 · 4 · heads · size · Σ len² / 2 (two products forward,
five backward); their rate stands beside the device's rate for a large matrix product.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from mindspeed_llm.attention.dense_attention import dense_mask
from mindspeed_llm.attention.kernel_interface import AttentionKernel
from mindspeed_llm.attention.kernel_selection import KERNELS
from mindspeed_llm.boundaries import segment_lengths
from mindspeed_llm.devices import Device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# With more tokens a host times the references that cost T² on some of the heads.
ALL_HEADS = 4096
# Of the memory that is free, the part that an entry may take.
SHARE_OF_MEMORY = 0.8
GIB = 2**30
# Budgets that a first round may take and still be followed by another.
FIRST_ROUND = 4
PACKS = ("100 tokens each", "long and short", "skewed")
GOALS = {PACKS[0]: (1.3, 10.0), PACKS[1]: (None, 4.0)}

DENSE, MIXED = "dense mask", "causal, samples mixed"

Step = Callable[[], object]


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        step: forward and backward; None if it is not run.
        times: what its time is multiplied by: heads of the model for each one that is timed.
        why_not: why it is not run.
    """

    step: Step | None
    times: int = 1
    why_not: str = ""


def distributions(tokens: int) -> dict[str, tuple[int, ...]]:
    """Boundaries of three packs of `tokens`: equal short segments, long and short mixed, skewed as chat data are."""
    draw = np.random.default_rng(0)
    equal, mixed, skewed = PACKS
    packs: dict[str, list[int]] = {equal: [100] * (tokens // 100)}
    packs[mixed] = [tokens * 3 // 8, *[60] * 10, tokens // 6, *[80] * 5, *[100] * (tokens // 400)]
    packs[skewed] = np.minimum(draw.lognormal(5.0, 1.0, tokens).astype(int) + 1, tokens // 2).tolist()
    result = {}
    for name, lengths in packs.items():
        ends = np.cumsum(lengths)
        ends = ends[ends < tokens].tolist()
        result[name] = (*ends, tokens)
    return result


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
    """[batch, heads, length, size] through torch's own attention."""
    options = {"is_causal": True, **options}
    return scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)  # type: ignore[arg-type]


class Case:
    """One pack, and a step (forward and backward) for each way to attend."""

    def __init__(self, ends: tuple[int, ...], options: argparse.Namespace) -> None:
        self.ends, self.lengths, self.options = ends, segment_lengths(ends), options
        self.total = ends[-1]
        self.flops = 3.5 * 4 * options.heads * options.size / 2 * sum(length**2 for length in self.lengths)
        # One head in each group stands for the others where all would take too long.
        some = options.device == "cpu" and self.total > ALL_HEADS and options.heads % options.groups == 0
        self.sampled = options.groups if some else options.heads

    def draw(self, *shape: int, heads: int, heads_last: bool = False) -> list[torch.Tensor]:
        """Query, key and value of the given outer shape that want gradients, and the gradient of the output."""
        groups, size = self.options.groups, self.options.size
        where = {"device": self.options.device, "dtype": DTYPES[self.options.dtype]}
        counts = (heads, groups, groups, heads)
        if heads_last:
            made = [torch.randn(*shape, count, size, **where) for count in counts]
        else:
            made = [torch.randn(shape[0], count, *shape[1:], size, **where) for count in counts]
        return [part.requires_grad_(number < 3) for number, part in enumerate(made)]

    def bytes_of(self, slots: int, heads: int) -> int:
        """Query, key, value, output and their gradients of so many slots."""
        heads_and_groups = 4 * heads + 4 * self.options.groups
        return slots * heads_and_groups * self.options.size * DTYPES[self.options.dtype].itemsize

    def kernel(self, kernel: AttentionKernel) -> Entry:
        """A kernel of the table, on the stream."""
        *inputs, upstream = self.draw(self.total, heads=self.options.heads, heads_last=True)
        scale = self.options.size**-0.5
        return Entry(lambda: torch.autograd.grad(kernel(*inputs, self.ends, scale), inputs, upstream))  # type: ignore[call-arg]

    def alone(self) -> Entry:
        """Each segment by a call of its own, on tensors that nothing else shares."""
        segments = [self.draw(1, length, heads=self.options.heads) for length in self.lengths]

        def step() -> None:
            for *inputs, upstream in segments:
                torch.autograd.grad(causal(*inputs), inputs, upstream)

        return Entry(step)

    def whole(self, dense: bool) -> Entry:
        """One call over the stream: with the pack's dense mask, or causal and so mixing the samples."""
        heads = self.options.heads if dense else self.sampled  # making the mask does not cost by the head
        needed = self.bytes_of(self.total, heads)
        if dense:  # the mask as bool, and as what torch adds to the scores
            needed += self.total**2 * (1 + DTYPES[self.options.dtype].itemsize)
        if (reason := does_not_fit(needed, self.options.device)) is not None:
            return Entry(None, why_not=reason)
        *inputs, upstream = self.draw(1, self.total, heads=heads)
        how: dict[str, object] = {}
        if dense:
            how = {"attn_mask": dense_mask(self.ends, self.options.device), "is_causal": False}
        return Entry(lambda: torch.autograd.grad(causal(*inputs, **how), inputs, upstream), self.options.heads // heads)

    def padded(self) -> Entry:
        """One row for each segment, all as long as the longest."""
        rows, longest = len(self.lengths), max(self.lengths)
        if (work := rows * longest**2 / self.total**2) > 1:
            return Entry(None, why_not=f"not run: {work:,.0f} × the scores of the causal call")
        if (reason := does_not_fit(self.bytes_of(rows * longest, self.sampled), self.options.device)) is not None:
            return Entry(None, why_not=reason)
        *inputs, upstream = self.draw(rows, longest, heads=self.sampled)
        step: Step = lambda: torch.autograd.grad(causal(*inputs), inputs, upstream)  # noqa: E731
        return Entry(step, self.options.heads // self.sampled)


def free_bytes(device: str) -> int:
    """Memory of the device that may be had now."""
    if device == "cpu":
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return int(getattr(torch, device).mem_get_info()[0])


def does_not_fit(needed: int, device: str) -> str | None:
    """Why so many bytes are too many, or None."""
    free = free_bytes(device)
    if needed <= SHARE_OF_MEMORY * free:
        return None
    return f"does not fit: needs {needed / GIB:,.0f} GiB, {free / GIB:,.0f} are free"


def fastest(entries: dict[str, Entry], options: argparse.Namespace, wait: Step) -> dict[str, float]:
    """Seconds of the fastest round of each entry that is run. The first round warms up and is not counted, unless an
    entry's budget allows no other."""
    clock = time.perf_counter if options.clock == "elapsed" else time.process_time
    running = {name: entry for name, entry in entries.items() if entry.step is not None}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds + 1):
        for name, entry in running.items():
            spent = seconds[name]
            if sum(spent) > options.budget * (1 if len(spent) > 1 else FIRST_ROUND):
                continue
            assert entry.step is not None
            wait()
            start = clock()
            try:
                entry.step()
            except torch.OutOfMemoryError:  # of an accelerator, whose kernels may take more than was reckoned
                seconds[name] = [float("inf")]
                continue
            wait()
            spent.append(clock() - start)
    return {name: min(times[1:] or times) * running[name].times for name, times in seconds.items()}


def matrix_rate(options: argparse.Namespace, wait: Step) -> float:
    """FLOP/s of one large matrix product of the type that is measured."""
    size = 1024 if options.device == "cpu" else 8192
    left = torch.randn(size, size, device=options.device, dtype=DTYPES[options.dtype])
    return 2 * size**3 / fastest({"": Entry(lambda: left @ left)}, options, wait)[""]


def print_case(
    name: str,
    case: Case,
    entries: dict[str, Entry],
    seconds: dict[str, float],
    rate: float,
    kernels: Sequence[str],
) -> None:
    """The table of one pack."""
    alone, lengths = seconds["each alone"], case.lengths
    print(f"\n{case.total:,} tokens, {name}: {len(lengths)} segments of {min(lengths)} to {max(lengths)}")
    print(f"  {'':22} {'ms':>10} {'÷ each alone':>13} {'TFLOP/s':>9} {'of matrix rate':>15}")
    for line, entry in entries.items():
        mark = "*" if line in kernels else "†" if entry.times > 1 else " "
        if entry.step is None:
            print(f"{mark} {line:22} {entry.why_not}")
            continue
        if seconds[line] == float("inf"):
            print(f"{mark} {line:22} ran out of memory")
            continue
        useful = case.flops / seconds[line]
        figures = (
            f"{seconds[line] * 1e3:10.2f} {seconds[line] / alone:13.2f} {useful / 1e12:9.3f} {useful / rate:15.1%}"
        )
        print(f"{mark} {line:22} {figures}", flush=True)


def missed_goals(name: str, seconds: dict[str, float], kernel: str) -> list[str]:
    """Which of the CPU's goals this pack missed."""
    over_alone, below_dense = GOALS.get(name, (None, None))
    missed = []
    if over_alone is not None and seconds[kernel] > over_alone * seconds["each alone"]:
        missed.append(f"{name}: {seconds[kernel] / seconds['each alone']:.2f} × each alone, goal {over_alone}")
    if below_dense is not None and DENSE in seconds and seconds[DENSE] < below_dense * seconds[kernel]:
        missed.append(f"{name}: dense mask is {seconds[DENSE] / seconds[kernel]:.1f} ×, goal {below_dense}")
    return missed


def uses_all_cores(case: Case, kernel: AttentionKernel) -> float:
    """Processor time over elapsed time of the kernel, the best of five rounds: near the number of threads."""
    step = case.kernel(kernel).step
    assert step is not None
    shares = []
    for _ in range(6):
        processor, start = time.process_time(), time.perf_counter()
        step()
        shares.append((time.process_time() - processor) / (time.perf_counter() - start))
    return max(shares[1:])


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="fp32 on the CPU, bf16 elsewhere")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768, 131072], help="length of the stream")
    parser.add_argument("--packs", nargs="+", choices=PACKS, help="only these")
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="of a head")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds after which an entry has had its rounds")
    parser.add_argument("--clock", choices=("elapsed", "processor"), default="elapsed")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--check", action="store_true", help="status 1 where the CPU kernel misses its goals")
    options = parser.parse_args()
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "bf16")
    return options


def main() -> int:
    """Measure and print; the status."""
    options = read_options()
    if options.device == "npu":
        import torch_npu  # noqa: F401
    Device(options.device).activate()  # as a run does: on the CPU freed memory is kept
    if options.threads:
        torch.set_num_threads(options.threads)
    wait: Step = (lambda: None) if options.device == "cpu" else getattr(torch, options.device).synchronize
    dtype = DTYPES[options.dtype]
    kernels = [k for k in KERNELS[options.device] if k.unsupported(options.device, dtype, options.size) is None]
    rate = matrix_rate(options, wait)
    print(
        f"{options.device}, {options.dtype}, {options.heads} heads, {options.groups} groups, size {options.size}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} time; "
        f"matrix product {rate / 1e12:.3f} TFLOP/s"
    )
    missed = []
    for tokens in options.tokens:
        known: dict[str, float] = {}  # seconds of what costs the same whatever the segments are
        for name, ends in distributions(tokens).items():
            if options.packs and name not in options.packs:
                continue
            case = Case(ends, options)
            entries = {kernel.name: case.kernel(kernel) for kernel in kernels}
            entries |= {"each alone": case.alone(), DENSE: case.whole(dense=True)}
            entries |= {MIXED: case.whole(dense=False), "padded": case.padded()}
            seconds = known | fastest(
                {line: each for line, each in entries.items() if line not in known}, options, wait
            )
            known = {line: seconds[line] for line in (DENSE, MIXED) if line in seconds}
            print_case(name, case, entries, seconds, rate, [kernel.name for kernel in kernels])
            missed += missed_goals(name, seconds, kernels[0].name)
            if options.device == "cpu" and options.clock == "elapsed" and name == PACKS[0]:
                print(f"  processor time ÷ time of {kernels[0].name}: {uses_all_cores(case, kernels[0]):.2f}")
    if options.check:
        print("\n" + ("\n".join(["missed:", *missed]) if missed else "goals met"))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
