"""Further measurements of training.py: long packs, the growth of attention time with Σ len², and a profile."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import training_steps as own
from torch.profiler import ProfilerActivity, profile

from mindspeed_llm.attention import select_kernel

LONG = 16384
clock: Callable[[], float] = time.perf_counter


def long_packs(folder: Path, measure: Callable[..., Any], rounds: int) -> float:
    """Measure 16k packs of 200-token samples with boundaries (a) and with a dense mask (b).

    Args:
        folder: directory for the packed files.
        measure: `measure_interleaved` of training.py.
        rounds: number of measured steps.

    Returns:
        The median of (a) ÷ (b).
    """
    directory = folder / "long"
    directory.mkdir()
    samples = own.Samples.planned(np.full(3 * (LONG // 200), 200, dtype=np.int64), LONG)
    trainers = own.training_methods(directory, samples, "ab")
    for trainer in trainers.values():
        trainer.step()
    times = measure({name: trainer.rates for name, trainer in trainers.items()}, rounds)
    ratio = statistics.median(times["b"].ratios)
    print(f"\n{LONG:,} slots, samples of 200 tokens, useful tokens/s:", end=" ")
    print(", ".join(f"({name}) {statistics.median(steps.useful):,.0f}" for name, steps in times.items()), end="; ")
    print(f"(a) ÷ (b) {ratio:.2f}")
    return ratio


def growth(rounds: int, slots: int = 4096) -> None:
    """Time the attention of one layer, forward and backward, on packs with increasing segment lengths.

    Prints the times, the fitted line fixed + rate · Σ len², and its coefficient of determination R².
    """
    kernel = select_kernel("cpu", torch.float32, own.HIDDEN // own.HEADS).kernel
    size = own.HIDDEN // own.HEADS
    shapes = [(slots, heads, size) for heads in (own.HEADS, own.GROUPS, own.GROUPS, own.HEADS)]
    query, key, value, upstream = (torch.randn(shape) for shape in shapes)
    inputs = [part.requires_grad_() for part in (query, key, value)]
    cuts = [length for length in (64, 128, 256, 512, 1024, 2048, 4096) if length <= slots]
    seconds: dict[int, list[float]] = {length: [] for length in cuts}
    for number in range(3 * rounds + 1):
        for length in cuts:
            ends = tuple(range(length, slots + 1, length))
            start = clock()
            torch.autograd.grad(kernel(query, key, value, ends, size**-0.5), inputs, upstream)
            if number:  # round 0 is a warm-up
                seconds[length].append(clock() - start)
    squares = np.array([slots * length for length in cuts], dtype=np.float64)
    fastest = np.array([1e3 * min(seconds[length]) for length in cuts])
    # Weighted by 1 / time, so that relative errors count: otherwise a large error for short segments would not matter
    # next to the much larger times of long ones.
    rate, fixed = np.polyfit(squares, fastest, 1, w=1 / fastest)
    explained = 1 - np.sum((fastest - rate * squares - fixed) ** 2) / np.sum((fastest - fastest.mean()) ** 2)
    print(f"\nattention of a layer, {slots:,} tokens\n  segments of      Σ len²        ms    fixed + rate · Σ len²")
    for length, square, milliseconds in zip(cuts, squares, fastest, strict=True):
        print(f"  {length:11,} {square:11,.0f} {milliseconds:9.2f} {fixed + rate * square:14.2f}")
    print(f"  fixed {fixed:.2f} ms, {1e6 * rate:.2f} ms for a million of Σ len², R² {explained:.4f}")


def profiled(folder: Path, samples: own.Samples, steps: int = 3) -> None:
    """Profile a few steps of (a) with torch's profiler and print the self time of the operators by purpose."""
    directory = folder / "profile"
    directory.mkdir()
    [trainer] = own.training_methods(directory, samples, "a").values()
    spent, wall = time_by_purpose(trainer, steps)
    # The self times of nested operators add up to the time of the outermost range, "step".
    print(f"\ntime of a step of (a) by purpose, {wall:.0f} ms under the profiler, {torch.get_num_threads()} threads")
    total = sum(spent.values())
    for purpose, milliseconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {purpose:48} {milliseconds:8.1f} ms {milliseconds / total:7.1%}")


def time_by_purpose(trainer: own.Trainer, steps: int = 3) -> tuple[dict[str, float], float]:
    """Return the self time of the operators of a step by purpose, and the time of a step, in milliseconds."""
    for _ in range(2):  # warm-up
        trainer.step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        start = time.perf_counter()  # the clock of the profiler, independent of --clock
        for _ in range(steps):
            trainer.step()
        wall = 1e3 * (time.perf_counter() - start) / steps
    spent: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        spent[_purpose(event.name, event.input_shapes)] += event.self_cpu_time_total / 1e3 / steps
    return spent, wall


def _purpose(name: str, shapes: list[Any]) -> str:
    """Classify an operator by its name and the shapes of its inputs."""
    widths = {shape[-1] for shape in shapes if isinstance(shape, list) and len(shape) > 1}
    rows = {dimension for shape in shapes if isinstance(shape, list) for dimension in shape}
    if name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::matmul", "aten::linear"):
        return "matrix products: output layer" if own.VOCABULARY in rows else "matrix products: layers"
    if "flash_attention" in name or "scaled_dot_product" in name.lower() or "_InPlace" in name:
        return "attention"
    if "CrossEntropy" in name or own.VOCABULARY in widths:
        return "cross entropy, embedding"
    if "embedding" in name.lower() or "index_select" in name:
        return "cross entropy, embedding"
    if "adamw" in name or "vector_norm" in name or any(dimension > 10**6 for dimension in rows):
        return "optimizer, gradient norm and buffers"
    if "silu" in name.lower() or "SwiGLU" in name or widths & {own.FFN, 2 * own.FFN}:
        return "SwiGLU"
    if name == "data":
        return "building batches"
    if name == "step":
        return "Python between operators"
    if name.startswith("c10d") or "gloo" in name:
        return "collectives of one rank"
    if name.startswith("autograd::") or name.endswith("Backward") or name.endswith("Backward0"):
        return "autograd engine"
    if own.HIDDEN in widths or 1 in widths:
        return "norms, residuals, gradients of weights"
    if own.HIDDEN // own.HEADS in widths or own.HIDDEN // own.HEADS // 2 in widths:
        return "rotary embedding, copies of heads"
    return "small operators, views, concatenation"
