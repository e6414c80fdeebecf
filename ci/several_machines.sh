#!/usr/bin/env bash
# Two machines as two network namespaces: training, the death of a rank, of a machine, of a cable; then how long the
# survivors took to end. Needs root and the `ip` program (Debian: apt-get install iproute2); takes some minutes.
#     bash ci/several_machines.sh [arguments for pytest]
# Uses the environment that is active, or the one that ci/test.sh made.
set -euo pipefail
cd "$(dirname "$0")/.."

source ci/environment.bash
# An ordinary run skips what needs namespaces where there are none; whoever calls this wants to know.
python -c 'import sys; sys.path.insert(0, "tests"); import two_machines; sys.exit(two_machines.why_not())'
exec python -m pytest --color=no -m "long or not long" -s tests/test_several_machines.py "$@"
