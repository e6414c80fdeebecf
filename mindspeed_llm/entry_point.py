"""What an entry point says about its process as a whole: memory, output and its exit status."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from mindspeed_llm.errors import ConfigError, UserError, escape_control_characters
from mindspeed_llm.launcher_environment import read_launcher_environment

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep what is freed, instead of handing large blocks back to the system at once.

    torch takes the CPU's memory from malloc, and a training step allocates the same large tensors again and again.
    glibc maps those of 32 MiB and more afresh each time, and the system zeroes them page by page as they are first
    written: a training step takes 1.05 times the processor time then (4 layers, hidden size 256, 4,096 slots; median of
    8 pairs). The process keeps its peak memory until it ends.

    Returns:
        whether anything was done, see `_tell_malloc`.
    """
    return _tell_malloc((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT))


def _tell_malloc(*settings: tuple[int, int]) -> bool:
    """Whether glibc's mallopt took all `settings`: not without glibc, and not where the environment tells malloc what
    to do (MALLOC_MMAP_MAX_ and the like, GLIBC_TUNABLES, another malloc in LD_PRELOAD)."""
    told = [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    if told:
        return False
    import ctypes  # after --help

    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries have a mallopt with other numbers, or none
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(bool(mallopt(setting, value)) for setting, value in settings)


def ensure_standard_streams() -> None:
    """Give what is said to nobody where the caller has closed stdout or stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - until the end


def print_error(error: UserError, program: str) -> None:
    """Print `error` to stderr as 'PROGRAM: error: LINE', one line for each problem."""
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    for problem in problems:
        print(f"{program}: {error.word}: {escape_control_characters(problem)}", file=sys.stderr, flush=True)


def _rank() -> int:
    """This rank's number; 0 where the environment does not hold one, which is the error to report."""
    try:
        return read_launcher_environment().rank
    except ConfigError:
        return 0


def run_program(main: Callable[[], int | None], program: str) -> int:
    """Run `main` and give the status to exit with: its own, or that of a user's error (2, if it has no other).

    Under torchrun every rank meets the same error and only rank 0 prints it, unless it is marked as one rank's own.
    """
    try:
        return main() or 0
    except UserError as error:
        rank = _rank()
        if rank == 0 or error.on_one_rank:
            print_error(error, f"{program} (rank {rank})" if rank else program)
        return error.status


def flush_output(status: int) -> int:
    """Flush stdout and stderr at the end of a program.

    Args:
        status: what the program would exit with.

    Returns:
        `status`, or 1 in place of 0 if output was lost (a full disk). A reader that closed its pipe is no error.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # the caller has closed it
            continue
        try:
            stream.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                status = status or 1
                with contextlib.suppress(OSError):
                    os.write(2, f"the output cannot be written ({error.strerror})\n".encode())
            # The interpreter flushes once more as it ends, which would fail again and replace the status by 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
