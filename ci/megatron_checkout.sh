#!/usr/bin/env bash
# Compare the unchanged pretrain_gpt.py of a Megatron-LM checkout, plus our import line, with this project's own loop on the
# CPU: MEGATRON_LM=DIR bash ci/megatron_checkout.sh
#
# Prints the relative differences of loss, gradient norm and validation loss for each layout, and the seconds. The
# version of the checkout must be one of those in mindspeed_llm/megatron/megatron_versions.py. To try another one, add
# it there, run this script, and keep it only if all differences are below 1e-6.
#   MEGATRON_LM          folder of the checkout, such as an unpacked `git archive core_v0.16.1`
#   MINDSPEED_LLM_VENV   environment with torch and this project (default: the active one, else .venv-test)
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/environment.bash
[ -f "${MEGATRON_LM:-}/pretrain_gpt.py" ] || { echo "ci/megatron_checkout.sh: error: MEGATRON_LM must name a checkout" >&2; exit 2; }
MEGATRON_LM="$(cd "$MEGATRON_LM" && pwd)"
export MEGATRON_LM
python -m pytest -q --color=no -p no:cacheprovider -s tests/test_megatron_lm.py -m long -k checkout
