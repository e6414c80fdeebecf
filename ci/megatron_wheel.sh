#!/usr/bin/env bash
# Unpack the PyPI wheel of megatron-core 0.17.1, which holds megatron.training, in a separate directory: bash ci/megatron_wheel.sh
#
# Installed beside megatron-core 0.16.1 it would replace it. The metadata of the wheel ask for Python 3.12; the Python files
# run with 3.11, and the compiled index builder is not needed. The last line of the output is the directory for PYTHONPATH.
#   MEGATRON_WHEEL_DIR   directory (default .megatron_wheel here)
#   MINDSPEED_LLM_VENV   environment with pip (default: the active one, else .venv-test)
# Status 77: skipped, with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { printf '== skipped: %s\n' "$*"; exit 77; }
version=0.17.1
environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
[ -x "$environment/bin/python" ] || skip "no environment at $environment: create one with bash ci/test.sh"
site="${MEGATRON_WHEEL_DIR:-$PWD/.megatron_wheel}/megatron_core-$version"
if [ ! -d "$site/megatron/training" ]; then
    new="$site.$$"
    trap 'rm -rf "$new"' EXIT
    "$environment/bin/python" -m pip --quiet --disable-pip-version-check --retries 1 --timeout 20 install --no-deps \
        --ignore-requires-python --python-version 3.12 --only-binary :all: --target "$new" "megatron-core==$version" ||
        skip "megatron-core $version is not available"
    mkdir -p "$(dirname "$site")"
    # Another process may have been faster.
    mv -T "$new" "$site" 2>/dev/null || [ -d "$site/megatron/training" ]
fi
printf '%s\n' "$site"
