#!/usr/bin/env bash
# Run the tests that take too long for ci/test.sh: all tests marked `long` (a kill at each file operation of a save, saves
# that exceed the shutdown timeout of torchrun, memory growth over 2,000 steps, 20,000 random conversations, two machines
# and more), then the short training runs of ci/regression.py against their baselines. Takes about 15 minutes on two cores.
#     bash ci/regression.sh [arguments for pytest]
# Uses the active environment, or the one created by ci/test.sh. The exit status is 0 only if everything passed.
set -euo pipefail
cd "$(dirname "$0")/.."

source ci/environment.bash
status=0
python -m pytest --color=no -m long --durations=0 "$@" || status=$?
python ci/regression.py --suite cpu || status=$?
exit "$status"
