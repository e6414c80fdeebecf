"""What an entry point says about its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(program: str, **more: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, **more
    )  # type: ignore[call-overload]


def test_a_process_that_leaves_has_said_everything_and_has_its_status() -> None:
    program = "import sys, atexit; from mindspeed_llm.process import leave; atexit.register(print, 'taken apart')\n"
    program += "sys.stdout.write('said'); sys.stderr.write('told'); leave(3)"
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said", "told")


def test_a_process_that_nobody_listens_to_keeps_its_status() -> None:
    program = "import os, sys; from mindspeed_llm.process import leave\n"
    program += "sys.stdout.write('x'); os.close(1); leave(0)"
    assert run(program).returncode == 0


def test_malloc_is_told_nothing_where_the_environment_tells_it() -> None:
    program = "from mindspeed_llm import process; print(process.suit_many_tokens(), process.keep_freed_memory())"
    alone = run(program, env={"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"})
    assert alone.stdout.split() == ["False", "False"], alone.stderr
