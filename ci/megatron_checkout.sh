#!/usr/bin/env bash
# Compare the unchanged pretrain_gpt.py of a Megatron-LM checkout, plus our import line, with this project's own loop on the
# CPU: MEGATRON_LM=DIR [MINDSPEED=DIR] bash ci/megatron_checkout.sh
#
# Prints the relative differences of loss, gradient norm and validation loss for each layout, and the seconds. The
# version of the checkout must be one of those in mindspeed_llm/megatron/megatron_versions.py. To try another one, add
# it there, run this script, and keep it only if all differences are below 1e-6.
#   MEGATRON_LM          folder of the checkout, such as an unpacked `git archive core_v0.16.1`
#   MINDSPEED            folder of a MindSpeed checkout: run under its adaptor as well, over the torch_npu wheel with stub
#                        CANN libraries and strict CPU kernels (see ci/npu_contract.sh)
#   NPU_CONTRACT_DIR     directory for that wheel (default .npu_contract here)
#   MINDSPEED_LLM_VENV   environment with torch and this project (default: the active one, else .venv-test)
# Status 77: the part with MindSpeed was skipped, with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/environment.bash
log() { printf '== %s\n' "$*"; }
skip() { log "skipped: $*"; exit 77; }
folder() { # NAME FILE: the absolute path of the folder that the variable NAME holds, which has FILE
    [ -e "${!1:-}/$2" ] || { echo "ci/megatron_checkout.sh: error: $1 must name a checkout with $2" >&2; exit 2; }
    cd "${!1}" && pwd
}
compare() { python -m pytest -q --color=no -p no:cacheprovider -s -m long -k checkout "$1"; }

MEGATRON_LM="$(folder MEGATRON_LM pretrain_gpt.py)"
export MEGATRON_LM
if [ -n "${MINDSPEED:-}" ]; then
    MINDSPEED="$(folder MINDSPEED mindspeed/megatron_adaptor.py)"
    export MINDSPEED
fi
compare tests/test_megatron_lm.py
if [ -n "${MINDSPEED:-}" ]; then
    for tool in gcc nm; do command -v "$tool" >/dev/null || skip "no $tool here"; done
    . ci/npu_wheel.bash
    prepare_wheel
    # Only the runs under MindSpeed have the wheel on PYTHONPATH (tests/megatron_runs.py).
    TORCH_NPU_SITE="$site" LD_LIBRARY_PATH="$DIR/cann_stubs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
        compare tests/test_megatron_mindspeed.py
fi
