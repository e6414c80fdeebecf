"""Time packed attention, forward and backward: every kernel of a device beside four ways to do without it.

    python benchmarks/attention.py                       the CPU: 4,096 tokens, float32
    python benchmarks/attention.py --check               the same, and status 1 where the CPU's goals are missed
    python benchmarks/attention.py --device cuda         4k, 32k and 128k tokens, bfloat16

References, each by torch's scaled_dot_product_attention: every segment alone on contiguous tensors of its own (what
packing cannot beat by much), the dense mask of the pack, one causal call over the whole stream (which mixes samples),
and padding (every segment in a row as long as the longest).

Runs are interleaved: each round times every entry once, and an entry's figure is its fastest round, which other
programs on the machine disturb least. On a busy machine `--clock processor --threads 1` counts processor time instead.
FLOPs are those of the causal scores that segments need, 3.5 · 4 · heads · size · Σ len² / 2 (two products forward,
five backward); their rate stands beside the device's rate for a large matrix product.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from mindspeed_llm.attention.choice import KERNELS
from mindspeed_llm.attention.contract import Kernel, segment_lengths
from mindspeed_llm.attention.dense import dense_mask

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A dense mask or a padded batch beyond this many scores is left out: it would not fit, or never end.
MOST_SCORES = {"cpu": 14 * 4096**2, "cuda": 14 * 32768**2, "npu": 14 * 32768**2}
GOALS = {"100 tokens each": (1.3, 10.0), "long and short": (None, 4.0)}

Step = Callable[[], object]


def distributions(tokens: int) -> dict[str, tuple[int, ...]]:
    """Boundaries of three packs of `tokens`: equal short segments, long and short mixed, skewed as chat data are."""
    draw = np.random.default_rng(0)
    packs: dict[str, list[int]] = {"100 tokens each": [100] * (tokens // 100)}
    packs["long and short"] = [tokens * 3 // 8, *[60] * 10, tokens // 6, *[80] * 5, *[100] * (tokens // 400)]
    packs["skewed"] = np.minimum(draw.lognormal(5.0, 1.0, tokens).astype(int) + 1, tokens // 2).tolist()
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
        self.scores = options.heads * sum(length**2 for length in self.lengths)
        self.flops = 3.5 * 4 * self.scores * options.size / 2

    def draw(self, *shape: int, heads_last: bool = False) -> list[torch.Tensor]:
        """Query, key and value of the given outer shape that want gradients, and the gradient of the output."""
        heads, groups, size = self.options.heads, self.options.groups, self.options.size
        where = {"device": self.options.device, "dtype": DTYPES[self.options.dtype]}
        counts = (heads, groups, groups, heads)
        if heads_last:
            made = [torch.randn(*shape, count, size, **where) for count in counts]
        else:
            made = [torch.randn(shape[0], count, *shape[1:], size, **where) for count in counts]
        return [part.requires_grad_(number < 3) for number, part in enumerate(made)]

    def kernel(self, kernel: Kernel) -> Step:
        """A kernel of the table, on the stream."""
        *inputs, upstream = self.draw(self.ends[-1], heads_last=True)
        scale = self.options.size**-0.5
        return lambda: torch.autograd.grad(kernel(*inputs, self.ends, scale), inputs, upstream)  # type: ignore[call-arg]

    def alone(self) -> Step:
        """Each segment by a call of its own, on tensors that nothing else shares."""
        segments = [self.draw(1, length) for length in self.lengths]

        def step() -> None:
            for *inputs, upstream in segments:
                torch.autograd.grad(causal(*inputs), inputs, upstream)

        return step

    def whole(self, dense: bool) -> Step | None:
        """One call over the stream: with the pack's dense mask, or causal and so mixing the samples."""
        total = self.ends[-1]
        if self.options.heads * total**2 > MOST_SCORES[self.options.device]:
            return None
        *inputs, upstream = self.draw(1, total)
        how: dict[str, object] = {}
        if dense:
            how = {"attn_mask": dense_mask(self.ends, self.options.device), "is_causal": False}
        return lambda: torch.autograd.grad(causal(*inputs, **how), inputs, upstream)

    def padded(self) -> Step | None:
        """One row for each segment, all as long as the longest."""
        rows, longest = len(self.lengths), max(self.lengths)
        if rows * self.options.heads * longest**2 > MOST_SCORES[self.options.device]:
            return None
        *inputs, upstream = self.draw(rows, longest)
        return lambda: torch.autograd.grad(causal(*inputs), inputs, upstream)


def fastest(steps: dict[str, Step], options: argparse.Namespace, wait: Step) -> dict[str, float]:
    """Seconds of each step's fastest round; a first round, not counted, warms up."""
    clock = time.perf_counter if options.clock == "elapsed" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            wait()
            start = clock()
            step()
            wait()
            if number:
                seconds[name].append(clock() - start)
    return {name: min(times) for name, times in seconds.items()}


def matrix_rate(options: argparse.Namespace, wait: Step) -> float:
    """FLOP/s of one large matrix product of the type that is measured."""
    size = 1024 if options.device == "cpu" else 8192
    left = torch.randn(size, size, device=options.device, dtype=DTYPES[options.dtype])
    return 2 * size**3 / fastest({"": lambda: left @ left}, options, wait)[""]


def print_case(name: str, case: Case, seconds: dict[str, float], rate: float, kernels: Sequence[str]) -> None:
    """The table of one pack."""
    alone, lengths = seconds["each alone"], case.lengths
    print(f"\n{case.ends[-1]:,} tokens, {name}: {len(lengths)} segments of {min(lengths)} to {max(lengths)}")
    print(f"  {'':22} {'ms':>10} {'÷ each alone':>13} {'TFLOP/s':>9} {'of matrix rate':>15}")
    for entry, time_taken in seconds.items():
        mark = "*" if entry in kernels else " "
        useful = case.flops / time_taken
        figures = f"{time_taken * 1e3:10.2f} {time_taken / alone:13.2f} {useful / 1e12:9.3f} {useful / rate:15.1%}"
        print(f"{mark} {entry:22} {figures}")


def missed_goals(name: str, seconds: dict[str, float], kernel: str) -> list[str]:
    """Which of the CPU's goals this pack missed."""
    over_alone, below_dense = GOALS.get(name, (None, None))
    missed = []
    if over_alone is not None and seconds[kernel] > over_alone * seconds["each alone"]:
        missed.append(f"{name}: {seconds[kernel] / seconds['each alone']:.2f} × each alone, goal {over_alone}")
    if below_dense is not None and "dense mask" in seconds and seconds["dense mask"] < below_dense * seconds[kernel]:
        missed.append(f"{name}: dense mask is {seconds['dense mask'] / seconds[kernel]:.1f} ×, goal {below_dense}")
    return missed


def uses_all_cores(case: Case, kernel: Kernel) -> float:
    """Processor time over elapsed time of the kernel, the best of five rounds: near the number of threads."""
    step = case.kernel(kernel)
    shares = []
    for _ in range(6):
        processor, start = time.process_time(), time.perf_counter()
        step()
        shares.append((time.process_time() - processor) / (time.perf_counter() - start))
    return max(shares[1:])


def main() -> int:
    """Measure and print; the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda", "npu"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="fp32 on the CPU, bf16 elsewhere")
    parser.add_argument("--tokens", type=int, nargs="+", help="length of the stream")
    parser.add_argument("--heads", type=int, default=14)
    parser.add_argument("--groups", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="of a head")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=("elapsed", "processor"), default="elapsed")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--check", action="store_true", help="status 1 where the CPU kernel misses its goals")
    options = parser.parse_args()
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "bf16")
    if options.device == "npu":
        import torch_npu  # noqa: F401
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
    for tokens in options.tokens or ([4096] if options.device == "cpu" else [4096, 32768, 131072]):
        for name, ends in distributions(tokens).items():
            case = Case(ends, options)
            steps: dict[str, Step | None] = {kernel.name: case.kernel(kernel) for kernel in kernels}
            steps |= {"each alone": case.alone(), "dense mask": case.whole(dense=True)}
            steps |= {"causal, samples mixed": case.whole(dense=False), "padded": case.padded()}
            seconds = fastest({entry: step for entry, step in steps.items() if step}, options, wait)
            print_case(name, case, seconds, rate, [kernel.name for kernel in kernels])
            missed += missed_goals(name, seconds, kernels[0].name)
            if options.device == "cpu" and options.clock == "elapsed" and name == "100 tokens each":
                print(f"  processor time ÷ time of {kernels[0].name}: {uses_all_cores(case, kernels[0]):.2f}")
    if options.check:
        print("\n" + ("\n".join(["missed:", *missed]) if missed else "goals met"))
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
