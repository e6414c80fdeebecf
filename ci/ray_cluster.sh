#!/usr/bin/env bash
# Test --executor ray on a real Ray cluster of two workers on this machine, including a killed worker: bash ci/ray_cluster.sh
#
# Installs ray in a separate directory, because no other test needs it, and runs tests/test_preprocess_ray.py: the output
# files must equal those of a local run byte for byte. Arguments are passed to pytest.
#   RAY_DIR              directory for ray (default .ray here)
#   MINDSPEED_LLM_VENV   environment with this project (default: the active one, else .venv-test)
# Status 77: skipped, with the reason (no environment, no wheel available).
set -euo pipefail
cd "$(dirname "$0")/.."
log() { printf '== %s\n' "$*"; }
skip() { log "skipped: $*"; exit 77; }

version=2.60.0
environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
[ -x "$environment/bin/python" ] || skip "no environment at $environment: create one with bash ci/test.sh"
export PATH="$environment/bin:$PATH"
site="${RAY_DIR:-$PWD/.ray}/ray-$version"

if [ ! -d "$site/ray" ]; then
    log "installing ray $version in a separate directory"
    rm -rf "$site.new"
    python -m pip --quiet --disable-pip-version-check --retries 1 --timeout 20 install --only-binary :all: \
        --constraint constraints.txt --target "$site.new" "ray==$version" || skip "ray $version is not available"
    mv "$site.new" "$site"
fi
log "tests with ray $version"
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" \
    python -m pytest -q --color=no -p no:cacheprovider -m "long or not long" tests/test_preprocess_ray.py "$@"
