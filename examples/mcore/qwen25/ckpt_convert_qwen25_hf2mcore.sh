#!/usr/bin/env bash
# Qwen2.5 from Hugging Face to megatron-core; the result loads on any layout, as CKPT_LOAD_DIR of
# tune_qwen25_7b_4k_full_pack.sh.
# Further flags are passed on to convert_ckpt.py.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

# What to fill in, here or in the environment:
HF_DIR="${HF_DIR:-./model_from_hf/qwen25-7b-hf/}"          # folder with config.json and safetensors
MCORE_DIR="${MCORE_DIR:-./model_weights/qwen25-mcore/}"   # folder to write

exec python "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --load-model-type hf \
    --save-model-type mg \
    --model-type-hf qwen25 \
    --load-dir "$HF_DIR" \
    --save-dir "$MCORE_DIR" \
    --params-dtype bf16 \
    "$@"
