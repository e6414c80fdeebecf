"""Run commands with --check-only in one process, and print status and messages of each, and the modules at the end.

Arguments: a JSON list of (program, arguments) on standard input.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from mindspeed_llm.programs.command import run_named

if __name__ == "__main__":
    results = []
    for program, argv in json.load(sys.stdin):
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = run_named(program, argv, program)
        results.append([status, out.getvalue(), err.getvalue()])
    json.dump({"results": results, "modules": sorted(sys.modules)}, sys.stdout)
