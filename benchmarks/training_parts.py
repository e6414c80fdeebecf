"""What training.py shows beside its contest: long packs, the growth with Σ len², and where the time goes."""

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


def long_packs(folder: Path, in_turns: Callable[..., Any], rounds: int) -> float:
    """16k packs of 200-token samples, with boundaries and with a dense mask: the median of (a) ÷ (b)."""
    place = folder / "long"
    place.mkdir()
    samples = own.Samples.planned(np.full(3 * (LONG // 200), 200, dtype=np.int64), LONG)
    trainers = own.contestants(place, samples, "ab")
    for trainer in trainers.values():
        trainer.step()
    times = in_turns({name: trainer.rates for name, trainer in trainers.items()}, rounds)
    ratio = statistics.median(times["b"].ratios)
    print(f"\n{LONG:,} slots, samples of 200 tokens, useful tokens/s:", end=" ")
    print(", ".join(f"({name}) {statistics.median(one.useful):,.0f}" for name, one in times.items()), end="; ")
    print(f"(a) ÷ (b) {ratio:.2f}")
    return ratio


def growth(rounds: int, slots: int = 4096) -> None:
    """Attention of one layer, forward and backward, on packs cut into ever longer segments.

    Beside the times stands the line that fits them best, fixed + rate · Σ len², and how much of them it explains.
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
            began = clock()
            torch.autograd.grad(kernel(query, key, value, ends, size**-0.5), inputs, upstream)
            if number:
                seconds[length].append(clock() - began)
    squares = np.array([slots * length for length in cuts], dtype=np.float64)
    best = np.array([1e3 * min(seconds[length]) for length in cuts])
    # Weighted by 1 / time: a line that misses the short segments by half would not be noticed beside the longest.
    rate, fixed = np.polyfit(squares, best, 1, w=1 / best)
    explained = 1 - np.sum((best - rate * squares - fixed) ** 2) / np.sum((best - best.mean()) ** 2)
    print(f"\nattention of a layer, {slots:,} tokens\n  segments of      Σ len²        ms    fixed + rate · Σ len²")
    for length, square, milliseconds in zip(cuts, squares, best, strict=True):
        print(f"  {length:11,} {square:11,.0f} {milliseconds:9.2f} {fixed + rate * square:14.2f}")
    print(f"  fixed {fixed:.2f} ms, {1e6 * rate:.2f} ms for a million of Σ len², R² {explained:.4f}")


def profiled(folder: Path, samples: own.Samples, steps: int = 3) -> None:
    """Where the time of (a) goes: torch's profiler over a few steps, each operator's own time by what it is for."""
    place = folder / "profile"
    place.mkdir()
    [trainer] = own.contestants(place, samples, "a").values()
    for _ in range(2):
        trainer.step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        began = time.perf_counter()  # as the profiler does, whatever --clock says
        for _ in range(steps):
            trainer.step()
        wall = 1e3 * (time.perf_counter() - began) / steps
    spent: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        spent[_purpose(event.name, event.input_shapes)] += event.self_cpu_time_total / 1e3 / steps
    # Self times of nested operators add up to the time of the outermost, "step"; the profiler starts and ends outside.
    print(f"\nwhere a step of (a) goes, {wall:.0f} ms under the profiler, {torch.get_num_threads()} threads")
    total = sum(spent.values())
    for purpose, milliseconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {purpose:48} {milliseconds:8.1f} ms {milliseconds / total:7.1%}")


def _purpose(name: str, shapes: list[Any]) -> str:
    """What an operator is for, from its name and the width of what it is given."""
    widths = {shape[-1] for shape in shapes if isinstance(shape, list) and len(shape) > 1}
    rows = {dimension for shape in shapes if isinstance(shape, list) for dimension in shape}
    if name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear"):
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
        return "autograd's own work"
    if own.HIDDEN in widths or 1 in widths:
        return "norms, residuals, gradients of weights"
    if own.HIDDEN // own.HEADS in widths or own.HIDDEN // own.HEADS // 2 in widths:
        return "rotary embedding, copies of heads"
    return "small operators, views, joining"
