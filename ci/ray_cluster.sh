#!/usr/bin/env bash
# --executor ray on a real cluster of two workers on this machine, one of them killed at work: bash ci/ray_cluster.sh
#
# Puts ray into a folder of its own, since no other test needs it, and runs tests/test_preprocess_ray.py with it: the
# files are those of the local run, byte for byte. Arguments go on to pytest.
#   RAY_DIR              where ray goes (default .ray here)
#   MINDSPEED_LLM_VENV   the environment with this project (default the active one, else .venv-test)
# Status 77: skipped, with the reason (no environment, no wheel to be had).
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '== %s\n' "$*"; }
skip() { say "skipped: $*"; exit 77; }

version=2.60.0
environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
[ -x "$environment/bin/python" ] || skip "no environment at $environment: bash ci/test.sh makes one"
export PATH="$environment/bin:$PATH"
site="${RAY_DIR:-$PWD/.ray}/ray-$version"

if [ ! -d "$site/ray" ]; then
    say "fetching ray $version into a folder of its own"
    rm -rf "$site.new"
    python -m pip --quiet --disable-pip-version-check --retries 1 --timeout 20 install --only-binary :all: \
        --constraint constraints.txt --target "$site.new" "ray==$version" || skip "no ray $version to be had"
    mv "$site.new" "$site"
fi
say "tests over ray $version"
PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" \
    python -m pytest -q --color=no -p no:cacheprovider -m "long or not long" tests/test_preprocess_ray.py "$@"
