"""The memory of the CPU's tensors: what a step has freed serves the next one."""

from __future__ import annotations

import ctypes
import os

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, instead of handing large blocks back to the system at once.

    torch takes the CPU's memory from malloc, and a training step allocates the same large tensors again and again.
    glibc maps those of 32 MiB and more afresh each time, and the system zeroes them page by page as they are first
    written: of a step of benchmarks/training.py that was a twentieth to a sixth of the processor time. What a process
    has held at most it goes on holding.

    Returns:
        whether anything was done: not without glibc, and not where the environment tells malloc what to do
        (MALLOC_MMAP_MAX_ and the like, GLIBC_TUNABLES, another malloc in LD_PRELOAD).
    """
    told = [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    if told:
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries have a mallopt with other numbers, or none
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
