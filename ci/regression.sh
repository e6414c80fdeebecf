#!/usr/bin/env bash
# What takes too long for ci/test.sh: every test marked `long` (a kill at each file operation of a save, saves longer than
# torchrun's patience, 2,000 steps for creep, 20,000 random conversations, two machines, …), then the short trainings of ci/regression.py against
# their baselines. About a quarter of an hour on two cores.
#     bash ci/regression.sh [arguments for pytest]
# Uses the environment that is active, or the one that ci/test.sh made. The status is 0 only if all of it passed.
set -euo pipefail
cd "$(dirname "$0")/.."

source ci/environment.bash
status=0
python -m pytest --color=no -m long --durations=0 "$@" || status=$?
python ci/regression.py --suite cpu || status=$?
exit "$status"
