"""Run the main function of an entry point: malloc settings, standard streams, error messages and the exit status."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from mindspeed_llm.errors import ConfigError, UserError, escape_control_characters
from mindspeed_llm.interrupts import Interrupted, interrupts
from mindspeed_llm.launcher_environment import read_launcher_environment

# Parameter numbers of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1
_DEFAULT_MMAP_MAX, _DEFAULT_TRIM_THRESHOLD = 65536, 128 * 1024
# How long other ranks delay an error of the command line. Starting Python and importing the arguments may take seconds
# longer on one rank than on another.
SECONDS_FOR_RANK_ZERO = 20
INTERRUPTED = 128  # plus the number of a signal: exit status of a program that the signal ended


def keep_freed_memory() -> bool:
    """Configure glibc's malloc to keep freed memory instead of returning large blocks to the operating system.

    torch allocates CPU memory with malloc, and a training step allocates the same large tensors again and again. By
    default glibc maps blocks of 32 MiB and more anew each time, and the system zeroes each page at its first write: a
    training step takes 1.05 times the CPU time (4 layers, hidden size 256, 4,096 slots; median of 8 pairs). With this
    setting the process keeps its peak memory until it ends.

    Returns:
        Whether the setting was made: False without glibc, and where environment variables configure malloc.
    """
    return _configure_malloc((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _LARGEST_INT))


def return_freed_memory() -> bool:
    """Undo `keep_freed_memory`, for a program that holds one large model after another.

    Returns:
        Whether the setting was made, as in `keep_freed_memory`.
    """
    return _configure_malloc((_M_MMAP_MAX, _DEFAULT_MMAP_MAX), (_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD))


def _configure_malloc(*settings: tuple[int, int]) -> bool:
    """Pass (parameter, value) pairs to glibc's mallopt, and return whether it accepted all of them."""
    # The settings of the user win: MALLOC_MMAP_MAX_ and the like, GLIBC_TUNABLES, another malloc in LD_PRELOAD.
    set_by_user = [
        name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    ]
    if set_by_user:
        return False
    import ctypes  # late, so that --help does not wait for it

    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries have a mallopt with other numbers, or none
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(bool(mallopt(setting, value)) for setting, value in settings)


def ensure_standard_streams() -> None:
    """Open os.devnull as stdout or stderr if the caller has closed it, so that later output is discarded.

    Python sets sys.stdout or sys.stderr to None if its file descriptor is closed at the start.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - until the end


def print_error(error: UserError, program: str) -> None:
    """Print an error to stderr as 'PROGRAM: error: MESSAGE', one line for each problem of a ConfigError.

    Args:
        error: the error to print; its attribute `word` replaces 'error' in the line.
        program: name of the program, such as 'pretrain_gpt.py'.
    """
    problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    for problem in problems:
        print(f"{program}: {error.word}: {escape_control_characters(problem)}", file=sys.stderr, flush=True)


def _rank() -> int:
    """Return the rank of this process, or 0 if the launcher's variables are invalid."""
    try:
        return read_launcher_environment().rank
    except ConfigError:
        # Then these variables are the error that is being reported, and every rank has to print it.
        return 0


def run_program(main: Callable[[], int | None], program: str) -> int:
    """Run `main`, print a UserError without a traceback, and return the exit status.

    Args:
        main: the main function; None stands for status 0.
        program: name of the program for error messages.

    Returns:
        The status of `main`, or the status of the UserError that it raised (2 by default), or 128 plus the signal that
        ended it inside `interrupts`.
    """
    try:
        return main() or 0
    except UserError as error:
        rank = _rank()
        # Under torchrun every rank raises the same error, so that rank 0 prints it for all, unless it is on one rank.
        if rank == 0 or error.on_one_rank:
            print_error(error, f"{program} (rank {rank})" if rank else program)
        return error.status
    except Interrupted as stop:
        print(f"{program}: stopped by {stop.signal.name}; no half-written output is left", file=sys.stderr, flush=True)
        return stop.status


def run_command(
    main: Callable[[Sequence[str], str], int | None], argv: Sequence[str], program: str, *, interruptible: bool = False
) -> int:
    """Run the main function of a program with its command line, and return the exit status; see `run_program`.

    Args:
        main: takes the arguments and the name of the program.
        argv: command-line arguments without the program's name.
        program: name of the program for the help and for error messages.
        interruptible: whether SIGINT and SIGTERM end the program by an exception (`interrupts`).
    """
    ensure_standard_streams()
    with interrupts() if interruptible else contextlib.nullcontext():
        return run_program(lambda: main(argv, program), program)


@contextlib.contextmanager
def delay_errors_of_other_ranks() -> Iterator[None]:
    """Let rank 0 be the first to end with an error that all ranks have.

    Only rank 0 prints the error, and torchrun ends all ranks as soon as the first one fails. The ranks cannot
    communicate yet, and on a busy machine one may be seconds ahead of another.
    """
    is_rank_zero = read_launcher_environment().rank == 0
    try:
        yield
    except UserError:
        if not is_rank_zero:
            time.sleep(SECONDS_FOR_RANK_ZERO)
        raise


def end_process(status: int) -> NoReturn:
    """End this process after its output was flushed.

    After an interrupt the process does not wait for threads, which may still tokenise a large row.
    """
    if status > INTERRUPTED:
        os._exit(status)
    sys.exit(status)


def flush_output(status: int) -> int:
    """Flush stdout and stderr at the end of a program.

    Args:
        status: exit status of the program so far.

    Returns:
        `status`, or 1 instead of 0 if output was lost, for example on a full disk. A pipe that its reader has closed is
        not an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed by the caller
            continue
        try:
            stream.flush()
        except OSError as error:
            # A reader that closes its pipe, such as head, has read what it needs: no error.
            if not isinstance(error, BrokenPipeError):
                status = status or 1
                # Past sys.stderr, whose own buffer may be what cannot be written.
                with contextlib.suppress(OSError):
                    os.write(2, f"the output cannot be written ({error.strerror})\n".encode())
            # The interpreter flushes again when it exits, which would fail again and replace the exit status by 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status
