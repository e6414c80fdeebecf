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

# Install this package with the versions of constraints.txt. A torch that the environment has already, such as one for an
# accelerator, is kept. Otherwise torch is first and alone, so that no other package selects a different version.
#     install_package EXTRAS [package…]
install_package() {
    local torch constraints
    torch="$(installed_torch)"
    constraints="$VIRTUAL_ENV/.mindspeed_llm_constraints"
    if [ -n "$torch" ]; then
        check_torch "$torch"
        log "installing (versions of constraints.txt; torch $torch of the environment is kept)"
        { grep -v '^torch==' "$ROOT/constraints.txt"; echo "torch==$torch"; } > "$constraints"
    else
        log "installing (versions of constraints.txt)"
        cp "$ROOT/constraints.txt" "$constraints"
        python -m pip --quiet install --constraint "$constraints" "$(grep '^torch==' "$ROOT/constraints.txt")"
    fi
    python -m pip --quiet install --constraint "$constraints" --editable "$ROOT[$1]" "${@:2}"
}

# Print the version of torch in the environment, or nothing.
installed_torch() {
    python -c 'from importlib.metadata import distributions as d; print(next((x.version for x in d(name="torch")), ""))'
}

# Stop if the torch of the environment is older than pyproject.toml allows.
#     check_torch VERSION
check_torch() {
    local needed major minor needed_major needed_minor
    needed="$(sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' "$ROOT/pyproject.toml")"
    IFS=. read -r needed_major needed_minor _ <<< "$needed.0"
    IFS=. read -r major minor _ <<< "$1"
    if [ $((major * 1000 + minor)) -lt $((needed_major * 1000 + needed_minor)) ]; then
        echo "error: the environment has torch $1, and this package needs $needed; upgrade it, or use another environment" >&2
        exit 2
    fi
}

# Print the versions of installed packages in one line.
#     print_versions package…
print_versions() {
    python -c 'import sys; from importlib.metadata import version as v; print(", ".join(f"{n} {v(n)}" for n in sys.argv[1:]))' "$@"
}

# Print what decides whether an environment has to be installed again.
installed_version() { echo "$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum) $ROOT $*"; }

log() { printf '\n== %s\n' "$*"; }
