#!/usr/bin/env bash
# Test the NPU code paths with a real torch_npu wheel on x86-64 Linux without an NPU: bash ci/npu_contract.sh
#
# Installs the torch_npu wheel for this version of torch in a separate directory (installed next to torch it breaks other
# imports), builds stub CANN libraries for it with gcc, and registers strict CPU kernels for its operator schemas
# (tests/npu_operators.py). Then it runs
#   1. the exactness and contract tests of attention, norm, SwiGLU, rotary embedding and the model;
#   2. three steps of the demo model with tensor parallelism on two processes and the command line of an NPU; the
#      losses must equal those of --device cpu, and all operators must have been called.
# Detects: wrong names, types, shapes, layouts, masks, boundary lists and arguments of the documented operators, and a code
# path that silently uses another kernel. Does not test: numerics, speed, memory and limits of real hardware, HCCL.
#
# --tests-only and --run-only run only part 1 or part 2. --on-device is for a machine with at least two NPUs: nothing is
# installed or replaced by stubs; the same three steps run on the NPUs, and their losses must equal those of the CPU within
# 0.2 %.
#   NPU_CONTRACT_DIR     directory for wheel, libraries and runs (default .npu_contract here)
#   MINDSPEED_LLM_VENV   environment with torch and this project (default: the active one, else .venv-test)
# Status 77: skipped, with the reason (no compiler, no wheel available, not x86-64 Linux).
set -euo pipefail
cd "$(dirname "$0")/.."
log() { printf '== %s\n' "$*"; }
skip() { log "skipped: $*"; exit 77; }

case "${1:-}" in
"" | --tests-only | --run-only | --on-device) ;;
*) printf 'ci/npu_contract.sh: error: %s: give --tests-only, --run-only, --on-device or nothing\n' "$1" >&2; exit 2 ;;
esac
if [ "${1:-}" != --on-device ]; then
    [ "$(uname -sm)" = "Linux x86_64" ] || skip "the stub libraries are for x86-64 Linux"
    for tool in gcc nm; do command -v "$tool" >/dev/null || skip "no $tool here"; done
fi
environment="${MINDSPEED_LLM_VENV:-${VIRTUAL_ENV:-$PWD/.venv-test}}"
[ -x "$environment/bin/python" ] || skip "no environment at $environment: create one with bash ci/test.sh"
export PATH="$environment/bin:$PATH"

. ci/npu_wheel.bash

if [ "${1:-}" = --on-device ]; then
    log "tests of all kernels and fused operators on the NPU"
    python -m pytest -q --color=no -p no:cacheprovider -rs tests/test_on_accelerators.py
else
    prepare_wheel
    log "exactness and contract tests with torch_npu $version"
    [ "${1:-}" = --run-only ] || with_npu python -m pytest -q --color=no -p no:cacheprovider \
        tests/test_npu_operators.py tests/test_model_packing.py
    [ "${1:-}" != --tests-only ] || exit 0
fi

log "three steps of the demo model"
run="$DIR/run"
rm -rf "$run"
mkdir -p "$run"
python examples/demo/make_data.py "$run/demo.json"
python examples/demo/make_tokenizer.py "$run/demo.json" "$run/tokenizer"
python preprocess_data.py --input "$run/demo.json" --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path "$run/tokenizer" --handler-name AlpacaStyleInstructionHandler --prompt-type qwen \
    --append-eod --seq-length 1024 --workers 2 --output-prefix "$run/packed" --pack --neat-pack >"$run/preprocess.log"
FLAGS=(
    --tensor-model-parallel-size 2 --sequence-parallel
    --num-layers 4 --hidden-size 192 --ffn-hidden-size 512 --num-attention-heads 6 --group-query-attention
    --num-query-groups 2 --disable-bias-linear --add-qkv-bias --swiglu --normalization RMSNorm --norm-epsilon 1e-6
    --position-embedding-type rope --untie-embeddings-and-output-weights --seq-length 1024
    --tokenizer-type PretrainedFromHF --tokenizer-name-or-path "$run/tokenizer" --prompt-type qwen
    --is-instruction-dataset --neat-pack --reset-position-ids --data-path "$run/packed" --split 100,0,0 --eval-iters 0
    --no-save-model --micro-batch-size 2 --global-batch-size 2 --lr 3e-3 --clip-grad 1.0 --seed 1234 --log-interval 1
    --use-flash-attn --use-fused-rmsnorm --use-fused-swiglu --use-fused-rotary-pos-emb
)
launch() { OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node 2 "$@"; }
logged() { # FILE COMMAND...: write the output of the command to the file; print it if the command fails
    local file="$1"
    shift
    "$@" >"$file" 2>&1 || { cat "$file"; exit 1; }
}
logged "$run/start.log" launch pretrain_gpt.py --device cpu "${FLAGS[@]}" --train-iters 1 --save "$run/start"
FLAGS+=(--load "$run/start" --finetune --train-iters 3)
logged "$run/cpu.log" launch pretrain_gpt.py --device cpu "${FLAGS[@]}" --run-dir "$run/cpu"
if [ "${1:-}" = --on-device ]; then
    logged "$run/npu.log" launch pretrain_gpt.py --device npu "${FLAGS[@]}" --run-dir "$run/npu"
else
    logged "$run/npu.log" with_npu launch ci/npu_three_steps.py "${FLAGS[@]}" --run-dir "$run/npu"
fi
python ci/npu_compare.py "$run" "$@"
