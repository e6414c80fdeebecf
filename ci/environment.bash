# Read by the scripts beside it (`source`): puts the environment that is active, or the one that ci/test.sh made, first
# on PATH, and ends the script with status 2 if no pytest is there.
environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
PATH="$environment/bin:$PATH"
python -m pytest --version >/dev/null 2>&1 || {
    echo "$0: no pytest in $environment; run ci/test.sh first" >&2
    exit 2
}
