# Sourced by the scripts in this directory. Puts the active environment, or the one created by ci/test.sh, first on PATH,
# and ends the script with status 2 if it does not contain pytest.
environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
PATH="$environment/bin:$PATH"
python -m pytest --version >/dev/null 2>&1 || {
    echo "$0: no pytest in $environment; run ci/test.sh first" >&2
    exit 2
}
