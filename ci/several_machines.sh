#!/usr/bin/env bash
# Test training on two machines, simulated by two network namespaces: failures of a rank, a machine and the network, and how
# long the remaining processes take to end. Needs root and the `ip` program (Debian: apt-get install iproute2) and takes
# several minutes.
#     bash ci/several_machines.sh [arguments for pytest]
# Uses the active environment, or the one created by ci/test.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

source ci/environment.bash
# The test suite skips these tests if namespaces are not available; this script must fail instead, with the reason.
python -c 'import sys; sys.path.insert(0, "tests"); import two_machines; sys.exit(two_machines.unavailable_reason())'
exec python -m pytest --color=no -m "long or not long" -s tests/test_several_machines.py "$@"
