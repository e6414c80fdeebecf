#!/usr/bin/env bash
# Run all checks and tests of the project, as described in the README: bash ci/test.sh [arguments for pytest]
#
# The tests run in two processes, one test file at a time in each (pytest-xdist). -n 0 runs them in one process, as a
# debugger requires. A table at the end lists the slowest test files; --durations=20 lists the slowest tests.
# Uses the environment in MINDSPEED_LLM_VENV, else the active one, else .venv-test here, which is created with PYTHON
# (default python3.11 or python3). A CPU build of torch is sufficient. Tests that need ../shared are skipped with a reason
# if it is missing. The last lines are the summary of pytest and the outcome of the checks; the exit status is 0 only if all
# checks and tests passed.
set -euo pipefail
cd "$(dirname "$0")/.."

log() { printf '== %s\n' "$*"; }

environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
if [ ! -x "$environment/bin/python" ]; then
    base="${PYTHON:-$(command -v python3.11 || command -v python3 || true)}"
    [ -n "$base" ] || { echo "ci/test.sh: no python3.11 or python3 found; set PYTHON" >&2; exit 2; }
    log "creating the environment $environment with $base"
    "$base" -m venv "$environment"
fi
PATH="$environment/bin:$PATH"
export PATH VIRTUAL_ENV="$environment" PIP_DISABLE_PIP_VERSION_CHECK=1

# Bytecode is compiled when a module is first imported, not during the installation: compiling all of torch, megatron-core
# and transformers would take a minute. It must be written to disk, because the tests start hundreds of programs.
unset PYTHONDONTWRITEBYTECODE
pip() { python -m pip --quiet "$@"; }

# torch is installed first and alone, so that no other package selects a newer and larger version than the pinned one.
log "installing torch (version from constraints.txt)"
pip install --no-compile --constraint constraints.txt torch==2.13.0
log "installing this project with its test and check tools"
pip install --no-compile --constraint constraints.txt --editable '.[test,check,fast]'
python -c 'import sys, torch; print("   python", sys.version.split()[0], "torch", torch.__version__)'

# The checks run beside the tests and are reported after them: mypy alone would leave one core idle for a minute.
checks() {
    local failed=0
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        pre-commit run --all-files || failed=1
    else  # pre-commit needs git to list the files; run the same three checks directly
        ruff check . || failed=1
        ruff format --check . || failed=1
        mypy || failed=1
    fi
    return $failed
}
report="$(mktemp)"
trap 'rm -f "$report"' EXIT
log "ruff check, ruff format and mypy, beside the tests"
checks >"$report" 2>&1 &
checking=$!

# One thread per process: two test processes already use two cores, and additional threads of torch would compete for them.
export OMP_NUM_THREADS=1
parallel=(--numprocesses 2 --dist loadfile --no-loadscope-reorder)
log "pytest ${parallel[*]}"
status=0
if [ -n "${CI:-}" ] || [ ! -t 1 ]; then
    python -m pytest --color=no --quiet "${parallel[@]}" "$@" || status=$?
else
    python -m pytest "${parallel[@]}" "$@" || status=$?
fi
if wait "$checking"; then
    log "the checks passed"
else
    cat "$report"
    log "the checks FAILED"
    status=1
fi
exit "$status"
