"""What an entry point says about its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(program: str, redirected: str = "", **environment: str) -> subprocess.CompletedProcess:
    """`program` in a shell that redirects its streams, which Python buffers as it does by default."""
    command = ["bash", "-c", f'"$0" -c "$1" {redirected}', sys.executable, program]
    variables = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def test_output_is_flushed_and_the_status_is_kept_at_exit() -> None:
    program = "import sys; from mindspeed_llm.entry_point import flush_output\n"
    program += "sys.stdout.write('said'); sys.stderr.write('told'); sys.exit(flush_output(3))"
    done = run(program)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said", "told")


@pytest.mark.parametrize("status", [0, 2])
@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-"])
def test_a_process_whose_streams_are_closed_keeps_its_status(redirected: str, status: int) -> None:
    assert (
        run(
            f"import sys; from mindspeed_llm.entry_point import flush_output; sys.exit(flush_output({status}))",
            redirected,
        ).returncode
        == status
    )


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-"])
def test_output_to_closed_streams_is_ignored(redirected: str) -> None:
    program = (
        "import sys; from mindspeed_llm.entry_point import ensure_standard_streams, flush_output\n"
        "ensure_standard_streams()\n"
    )
    done = run(
        program + "print('a'); print('b', file=sys.stderr); sys.stderr.isatty(); sys.exit(flush_output(0))", redirected
    )
    wanted = ("" if redirected.startswith(">&-") else "a\n", "" if "2>&-" in redirected else "b\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, *wanted)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("status", "ended"), [(0, 1), (2, 2)])
def test_lost_output_is_reported(status: int, ended: int) -> None:
    program = "import sys; from mindspeed_llm.entry_point import flush_output; print('a report'); "
    done = run(f"{program}sys.exit(flush_output({status}))", "> /dev/full")
    assert done.returncode == ended and "cannot be written (No space left on device)" in done.stderr


def test_a_closed_pipe_is_no_error() -> None:
    program = (
        "import os, sys; from mindspeed_llm.entry_point import flush_output\n"
        "r, w = os.pipe(); os.dup2(w, 1); os.close(w)\n"
    )
    done = run(program + "os.close(r); print('x'); sys.exit(flush_output(0))")
    assert (done.returncode, done.stderr) == (0, "")


def test_malloc_settings_of_the_environment_are_respected() -> None:
    program = "from mindspeed_llm import entry_point; print(entry_point.keep_freed_memory())"
    alone = run(program, MALLOC_ARENA_MAX="1")
    assert alone.stdout.split() == ["False"], alone.stderr
