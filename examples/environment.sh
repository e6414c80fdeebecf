#!/usr/bin/env bash
# What the example scripts share: an environment with this package. They source this file; it is not run by itself.
set -euo pipefail

# Create a virtual environment, unless one exists, and put it first on PATH.
#     use_environment DIR SCRIPT
use_environment() {
    if [ ! -x "$1/bin/python" ]; then
        local base="${PYTHON:-$(command -v python3.11 || command -v python3 || true)}"
        [ -n "$base" ] || { echo "$2: no python3.11 or python3 found; set PYTHON" >&2; exit 2; }
        log "creating the environment $1"
        "$base" -m venv "$1"
    fi
    PATH="$1/bin:$PATH"
    export PATH VIRTUAL_ENV="$1" PIP_DISABLE_PIP_VERSION_CHECK=1
}

# Install this package with the versions of constraints.txt. torch is first and alone, so that no other package selects a
# different version.
#     install_package EXTRAS [package…]
install_package() {
    log "installing (versions of constraints.txt)"
    python -m pip --quiet install --constraint "$ROOT/constraints.txt" torch==2.13.0
    python -m pip --quiet install --constraint "$ROOT/constraints.txt" --editable "$ROOT[$1]" "${@:2}"
}

# Print the versions of installed packages in one line.
#     print_versions package…
print_versions() {
    python -c 'import sys; from importlib.metadata import version as v; print(", ".join(f"{n} {v(n)}" for n in sys.argv[1:]))' "$@"
}

# Print what decides whether an environment has to be installed again.
installed_version() { echo "$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum) $ROOT $*"; }

log() { printf '\n== %s\n' "$*"; }
