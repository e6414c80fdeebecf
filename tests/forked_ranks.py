"""Run jobs of several ranks as forks of one process that has imported torch and Megatron: importing costs seconds."""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def run_forked(name: str, ranks: int, work: Callable[[], None], folder: Path) -> float:
    """Run `work` on each rank of a job of its own.

    Args:
        name: name of the job; its ranks write their output to {name}.{rank}.log.
        ranks: number of ranks.
        work: called in each rank with RANK, WORLD_SIZE and the other variables of torchrun set.
        folder: folder of the logs. When the job has ended, {name}.seconds appears there, or {name}.failed if a rank
            failed.

    Returns:
        Seconds that the job took.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    children = [_fork(name, rank, ranks, port, work, folder) for rank in range(ranks)]
    states = []
    while children:
        child, status = os.wait()
        children.remove(child)
        states.append(os.waitstatus_to_exitcode(status))
        if states[-1]:
            # The others would wait for the failed rank.
            for other in children:
                os.kill(other, 9)
    seconds = time.monotonic() - started
    (folder / f"{name}.{'failed' if any(states) else 'seconds'}").write_text(f"{states if any(states) else seconds}")
    return seconds


def _fork(name: str, rank: int, ranks: int, port: int, work: Callable[[], None], folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(folder / f"{name}.{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({key: str(value) for key, value in variables.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID=name)
        # Rank 0 holds the store, as there is no agent of torchrun.
        os.environ.update(TORCHELASTIC_RESTART_COUNT="0", TORCHELASTIC_USE_AGENT_STORE="False")
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
