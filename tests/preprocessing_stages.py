"""Run preprocessing in child processes that are killed or get a full disk at every stage.

    python preprocessing_stages.py kill FOLDER WORDS...     SIGKILL before the n-th file operation, n = 0, 1, 2, ...
    python preprocessing_stages.py interrupt FOLDER WORDS... the same with SIGINT
    python preprocessing_stages.py limit FOLDER WORDS...    files may not grow beyond n bytes (RLIMIT_FSIZE)

FOLDER contains `old`, the output before each run, which is copied to `out` each time; WORDS are the command line.
Prints one line of JSON for each run with the names and SHA-256 of the files in `out`. The parent imports everything
once and forks, which makes hundreds of runs affordable.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.interrupts import interrupts
from mindspeed_llm.packing import plan_packs
from mindspeed_llm.preprocessing import preprocess
from mindspeed_llm.storage.hashing import HashingFile
from mindspeed_llm.tokenization import TokenStore

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
SENT = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}
LIMITS = (0, 100, 1_000, 4_000, 20_000, 60_000)


def kill_at_stage(stage: int, folder: Path, number: signal.Signals) -> None:
    """Send a signal to this process before its file operation number `stage` under `folder`."""
    touched = 0

    def touch() -> None:
        nonlocal touched
        touched += 1
        if touched == stage + 1:
            os.kill(os.getpid(), number)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in TOUCHES and any(
            isinstance(one, (str, os.PathLike)) and str(folder) in str(one) for one in arguments
        ):
            touch()

    def before(method: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            touch()
            return method(*arguments, **named)

        return called

    sys.addaudithook(hook)
    HashingFile.write = before(HashingFile.write)  # type: ignore[method-assign]
    HashingFile.finish = before(HashingFile.finish)  # type: ignore[method-assign]
    TokenStore.append = before(TokenStore.append)  # type: ignore[method-assign]


def run(words: list[str], prepare: Callable[[], None]) -> tuple[int, str]:
    """Run preprocessing in a child; return (exit status or minus the signal, lines with an error)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        output = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(output), interrupts():
            prepare()
            try:
                status = run_program(lambda: discard_result(preprocess(parse_preprocess_arguments(words))), "program")
            except Exception as error:  # not one of ours: a defect
                status = 1
                print(f"error: defect: {error!r}", *traceback.format_tb(error.__traceback__)[-3:], file=output)
        errors = [line for line in output.getvalue().splitlines() if "error:" in line]
        os.write(writing, "\n".join(errors).encode())
        os._exit(status)
    os.close(writing)
    _, ended = os.waitpid(child, 0)
    with os.fdopen(reading) as stream:
        return os.waitstatus_to_exitcode(ended), stream.read()


def discard_result(_: object) -> None:
    """Return None; run_program expects a program that returns a status or None."""


def hashes_of_files(out: Path) -> dict[str, str]:
    """Return name → SHA-256 of all files under `out`."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def main() -> None:
    kind, folder, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    out = folder / "out"
    plan_packs([1, 2], capacity=2, seed=0)  # import and compile once, so that the children need not
    # An interrupt at every third operation, because most of them are writes of the same kind.
    stages = LIMITS if kind == "limit" else range(0, 1_000, 3 if kind == "interrupt" else 1)
    for stage in stages:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(folder / "old", out)

        def prepare(stage: int = stage) -> None:
            if kind in SENT:
                kill_at_stage(stage, out, SENT[kind])
            else:
                resource.setrlimit(resource.RLIMIT_FSIZE, (stage, stage))

        status, errors = run(words, prepare)
        result: dict[str, Any] = {"stage": stage, "status": status, "errors": errors, "left": hashes_of_files(out)}
        if kind == "kill":
            again, _ = run(words, lambda: None)
            result |= {"again": again, "after": hashes_of_files(out)}
        print(json.dumps(result), flush=True)
        if kind in SENT and status == 0:
            break


if __name__ == "__main__":
    main()
