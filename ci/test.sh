#!/usr/bin/env bash
# The project's checks and tests, as the README gives them: bash ci/test.sh [arguments for pytest]
#
# Two processes run the tests, each one test file after another (pytest-xdist); -n 0 runs them in one process, as a
# debugger needs. A table at the end shows which test files took the most time; --durations=20 shows single tests.
# Uses the environment that MINDSPEED_LLM_VENV names, else the active one, else .venv-test here (made with
# PYTHON, default python3.11 or python3). CPU builds of torch are enough. Tests that need ../shared are skipped
# by name where it is missing. The last line is pytest's summary; the exit status is 0 only if all of it passed.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }

environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
if [ ! -x "$environment/bin/python" ]; then
    base="${PYTHON:-$(command -v python3.11 || command -v python3 || true)}"
    [ -n "$base" ] || { echo "ci/test.sh: no python3.11 or python3 found; set PYTHON" >&2; exit 2; }
    say "making the environment $environment with $base"
    "$base" -m venv "$environment"
fi
PATH="$environment/bin:$PATH"
export PATH VIRTUAL_ENV="$environment" PIP_DISABLE_PIP_VERSION_CHECK=1

# Bytecode is written for what is imported, by the first program that imports it: compiling all of torch, megatron-core
# and transformers during the installation takes a minute, and tests start hundreds of programs.
unset PYTHONDONTWRITEBYTECODE
pip() { python -m pip --quiet "$@"; }

# torch first and alone: the pinned version, so that no other package may choose a newer and larger one.
say "installing torch (constraints.txt has the version)"
pip install --no-compile --constraint constraints.txt torch==2.13.0
say "installing this project with its test and check tools"
pip install --no-compile --constraint constraints.txt --editable '.[test,check]'
python -c 'import sys, torch; print("   python", sys.version.split()[0], "torch", torch.__version__)'

failed=()
check() {
    say "$*"
    "$@" || failed+=("$*")
}
if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
    check pre-commit run --all-files
else  # the same three without git, which pre-commit asks for the files
    check ruff check .
    check ruff format --check .
    check mypy
fi

# One thread for each process: two test files beside one another keep two cores busy, and torch's threads would wait for
# each other.
export OMP_NUM_THREADS=1
parallel=(--numprocesses 2 --dist loadfile --no-loadscope-reorder)
say "pytest ${parallel[*]}"
[ ${#failed[@]} -eq 0 ] || say "FAILED above, the tests are run all the same: ${failed[*]}"
status=0
if [ -n "${CI:-}" ] || [ ! -t 1 ]; then
    python -m pytest --color=no --quiet "${parallel[@]}" "$@" || status=$?
else
    python -m pytest "${parallel[@]}" "$@" || status=$?
fi
[ ${#failed[@]} -eq 0 ] || exit 1
exit "$status"
