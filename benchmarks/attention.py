"""Benchmark packed attention, forward and backward, against four reference methods.

    python benchmarks/attention.py                       4k, 32k and 128k tokens in float32 on the CPU
    python benchmarks/attention.py --tokens 4096 --check check the goals of the CPU; status 1 if one is missed
    python benchmarks/attention.py --device cuda         the same in bfloat16

All kernels of the device are timed. The references use torch's scaled_dot_product_attention:

- each segment alone, in its own contiguous tensors (close to the best that a packed kernel can reach),
- one call with the dense mask of the pack,
- one causal call over the complete stream, which mixes samples,
- padding: one row per segment, each as long as the longest segment.

Runs are interleaved: each round times every entry once. The result of an entry is its fastest round, because that round
is disturbed least by other programs. An entry that has used --budget seconds is left out of further rounds. The first
round includes the first use of new memory, so it is discarded unless it took more than four budgets and is the only
round. The dense mask and the causal call cost T² for any segments and are timed once per stream length. On the CPU with
more than 4,096 tokens, the causal call and padding are timed with one head per group and their time is multiplied,
since all heads cost the same (marked with †). Entries that do not fit in memory, or need more work for padding than the
causal call, are skipped with the reason in the table.

On a busy machine, `--clock processor --threads 1` measures processor time.
FLOPs count the causal scores inside segments: 3.5 · 4 · heads · size · Σ len² / 2 (two products forward, five
backward). The rate is compared with that of a large matrix product on the same device.
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
# Maximum number of tokens for which the CPU times the T² references with all heads.
ALL_HEADS = 4096
# Maximum share of the free memory that an entry may use.
MEMORY_SHARE = 0.8
GIB = 2**30
# If the first round takes more than this many budgets, it is the only round.
FIRST_ROUND_BUDGETS = 4
PACKS = ("100 tokens each", "long and short", "skewed")
# pack -> (maximum time relative to "each alone", minimum time of the dense mask relative to the kernel)
GOALS = {PACKS[0]: (1.3, 10.0), PACKS[1]: (None, 4.0)}

DENSE, MIXED = "dense mask", "causal, samples mixed"

Step = Callable[[], object]


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        step: runs forward and backward once; None if the entry is skipped.
        factor: multiplier of the measured time: heads of the model divided by heads that are timed.
        skip_reason: why the entry is skipped.
    """

    step: Step | None
    factor: int = 1
    skip_reason: str = ""


def distributions(tokens: int) -> dict[str, tuple[int, ...]]:
    """Return the segment ends of three packs of `tokens` slots: equal, mixed long and short, and skewed lengths."""
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
    """Apply torch's causal attention to tensors of shape [batch, heads, length, size]."""
    options = {"is_causal": True, **options}
    return scaled_dot_product_attention(query, key, value, enable_gqa=True, **options)  # type: ignore[arg-type]


class Case:
    """One pack and the entries that are timed on it."""

    def __init__(self, ends: tuple[int, ...], options: argparse.Namespace) -> None:
        self.ends, self.lengths, self.options = ends, segment_lengths(ends), options
        self.total = ends[-1]
        self.flops = 3.5 * 4 * options.heads * options.size / 2 * sum(length**2 for length in self.lengths)
        # With many tokens all heads would take too long; one head per group is timed and the time is multiplied.
        sample_heads = options.device == "cpu" and self.total > ALL_HEADS and options.heads % options.groups == 0
        self.timed_heads = options.groups if sample_heads else options.heads

    def draw(self, *shape: int, heads: int, heads_last: bool = False) -> list[torch.Tensor]:
        """Draw query, key and value with gradients enabled, and the gradient of the output.

        Args:
            shape: outer shape, [batch, length] or [length].
            heads: number of query heads.
            heads_last: return [*shape, heads, size] instead of [batch, heads, length, size].
        """
        groups, size = self.options.groups, self.options.size
        placement = {"device": self.options.device, "dtype": DTYPES[self.options.dtype]}
        counts = (heads, groups, groups, heads)
        if heads_last:
            tensors = [torch.randn(*shape, count, size, **placement) for count in counts]
        else:
            tensors = [torch.randn(shape[0], count, *shape[1:], size, **placement) for count in counts]
        return [part.requires_grad_(number < 3) for number, part in enumerate(tensors)]

    def bytes_of(self, slots: int, heads: int) -> int:
        """Return the bytes of query, key, value, output and their gradients for a number of slots."""
        heads_and_groups = 4 * heads + 4 * self.options.groups
        return slots * heads_and_groups * self.options.size * DTYPES[self.options.dtype].itemsize

    def kernel(self, kernel: AttentionKernel) -> Entry:
        """Return the entry of a packed kernel on the complete stream."""
        *inputs, upstream = self.draw(self.total, heads=self.options.heads, heads_last=True)
        scale = self.options.size**-0.5
        return Entry(lambda: torch.autograd.grad(kernel(*inputs, self.ends, scale), inputs, upstream))  # type: ignore[call-arg]

    def separate_segments(self) -> Entry:
        """Return the entry with one call per segment, each on its own tensors."""
        segments = [self.draw(1, length, heads=self.options.heads) for length in self.lengths]

        def step() -> None:
            for *inputs, upstream in segments:
                torch.autograd.grad(causal(*inputs), inputs, upstream)

        return Entry(step)

    def full_stream(self, dense: bool) -> Entry:
        """Return the entry with one call over the stream, either with the dense mask or causal (mixing samples)."""
        # The cost of building the mask does not depend on the number of heads, so it cannot be extrapolated from some.
        heads = self.options.heads if dense else self.timed_heads
        needed = self.bytes_of(self.total, heads)
        if dense:  # the bool mask, and the mask in the dtype of the scores that torch adds to them
            needed += self.total**2 * (1 + DTYPES[self.options.dtype].itemsize)
        if (reason := does_not_fit(needed, self.options.device)) is not None:
            return Entry(None, skip_reason=reason)
        *inputs, upstream = self.draw(1, self.total, heads=heads)
        mask: dict[str, object] = {}
        if dense:
            mask = {"attn_mask": dense_mask(self.ends, self.options.device), "is_causal": False}
        return Entry(
            lambda: torch.autograd.grad(causal(*inputs, **mask), inputs, upstream), self.options.heads // heads
        )

    def padded(self) -> Entry:
        """Return the entry with one row per segment, padded to the longest."""
        rows, longest = len(self.lengths), max(self.lengths)
        if (work := rows * longest**2 / self.total**2) > 1:
            return Entry(None, skip_reason=f"not run: {work:,.0f} × the scores of the causal call")
        if (reason := does_not_fit(self.bytes_of(rows * longest, self.timed_heads), self.options.device)) is not None:
            return Entry(None, skip_reason=reason)
        *inputs, upstream = self.draw(rows, longest, heads=self.timed_heads)
        step: Step = lambda: torch.autograd.grad(causal(*inputs), inputs, upstream)  # noqa: E731
        return Entry(step, self.options.heads // self.timed_heads)


def free_bytes(device: str) -> int:
    """Return the free memory of the device in bytes."""
    if device == "cpu":
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return int(getattr(torch, device).mem_get_info()[0])


def does_not_fit(needed: int, device: str) -> str | None:
    """Return an error message if `needed` bytes do not fit in the free memory, else None."""
    free = free_bytes(device)
    if needed <= MEMORY_SHARE * free:
        return None
    return f"does not fit: needs {needed / GIB:,.0f} GiB, {free / GIB:,.0f} are free"


def fastest(entries: dict[str, Entry], options: argparse.Namespace, wait: Step) -> dict[str, float]:
    """Time all entries in turn and return the seconds of the fastest round of each.

    The first round is a warm-up and is not counted, unless the budget of an entry allows no other round.
    """
    clock = time.perf_counter if options.clock == "elapsed" else time.process_time
    running = {name: entry for name, entry in entries.items() if entry.step is not None}
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(options.rounds + 1):
        for name, entry in running.items():
            spent = seconds[name]
            if sum(spent) > options.budget * (1 if len(spent) > 1 else FIRST_ROUND_BUDGETS):
                continue
            assert entry.step is not None
            wait()
            start = clock()
            try:
                entry.step()
            except torch.OutOfMemoryError:  # kernels of an accelerator may allocate more than estimated
                seconds[name] = [float("inf")]
                continue
            wait()
            spent.append(clock() - start)
    return {name: min(times[1:] or times) * running[name].factor for name, times in seconds.items()}


def matrix_rate(options: argparse.Namespace, wait: Step) -> float:
    """Measure the FLOP/s of one large matrix product in the benchmarked dtype."""
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
    """Print the table of one pack."""
    alone, lengths = seconds["each alone"], case.lengths
    print(f"\n{case.total:,} tokens, {name}: {len(lengths)} segments of {min(lengths)} to {max(lengths)}")
    print(f"  {'':22} {'ms':>10} {'÷ each alone':>13} {'TFLOP/s':>9} {'of matrix rate':>15}")
    for line, entry in entries.items():
        mark = "*" if line in kernels else "†" if entry.factor > 1 else " "
        if entry.step is None:
            print(f"{mark} {line:22} {entry.skip_reason}")
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
    """Return a message for each goal of the CPU that this pack misses."""
    max_ratio_to_alone, min_dense_ratio = GOALS.get(name, (None, None))
    missed = []
    if max_ratio_to_alone is not None and seconds[kernel] > max_ratio_to_alone * seconds["each alone"]:
        missed.append(f"{name}: {seconds[kernel] / seconds['each alone']:.2f} × each alone, goal {max_ratio_to_alone}")
    if min_dense_ratio is not None and DENSE in seconds and seconds[DENSE] < min_dense_ratio * seconds[kernel]:
        missed.append(f"{name}: dense mask is {seconds[DENSE] / seconds[kernel]:.1f} ×, goal {min_dense_ratio}")
    return missed


def core_utilization(case: Case, kernel: AttentionKernel) -> float:
    """Return the maximum of processor time ÷ elapsed time over five rounds; ideally the number of threads."""
    step = case.kernel(kernel).step
    assert step is not None
    ratios = []
    for _ in range(6):
        processor, start = time.process_time(), time.perf_counter()
        step()
        ratios.append((time.process_time() - processor) / (time.perf_counter() - start))
    return max(ratios[1:])


def read_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: fp32 on the CPU, bf16 on other devices")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 32768, 131072], help="length of the stream")
    parser.add_argument("--packs", nargs="+", choices=PACKS, help="benchmark only these packs")
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="size of a head")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget", type=float, default=15.0, help="seconds after which an entry is not run again")
    parser.add_argument("--clock", choices=("elapsed", "processor"), default="elapsed")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if the CPU kernel misses its goals")
    options = parser.parse_args()
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "bf16")
    return options


def main() -> int:
    """Run the benchmark, print the tables and return the exit status."""
    options = read_options()
    if options.device == "npu":
        import torch_npu  # noqa: F401
    Device(options.device).activate()  # as in a training run: on the CPU, freed memory stays allocated
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
        shared_times: dict[str, float] = {}  # seconds of the entries that do not depend on the segments
        for name, ends in distributions(tokens).items():
            if options.packs and name not in options.packs:
                continue
            case = Case(ends, options)
            entries = {kernel.name: case.kernel(kernel) for kernel in kernels}
            entries |= {"each alone": case.separate_segments(), DENSE: case.full_stream(dense=True)}
            entries |= {MIXED: case.full_stream(dense=False), "padded": case.padded()}
            seconds = shared_times | fastest(
                {line: entry for line, entry in entries.items() if line not in shared_times}, options, wait
            )
            shared_times = {line: seconds[line] for line in (DENSE, MIXED) if line in seconds}
            print_case(name, case, entries, seconds, rate, [kernel.name for kernel in kernels])
            missed += missed_goals(name, seconds, kernels[0].name)
            if options.device == "cpu" and options.clock == "elapsed" and name == PACKS[0]:
                print(f"  processor time ÷ time of {kernels[0].name}: {core_utilization(case, kernels[0]):.2f}")
    if options.check:
        print("\n" + ("\n".join(["missed:", *missed]) if missed else "goals met"))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
