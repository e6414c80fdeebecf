#!/usr/bin/env bash
# Convert Qwen3 from megatron-core, for example the CKPT_SAVE_DIR of a fine-tuning run, to Hugging Face. The result is
# written to mg2hf/ inside the folder of the original model, together with its config and tokenizer. Additional flags are
# passed to convert_ckpt.py.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

# Set these here or in the environment:
MCORE_DIR="${MCORE_DIR:-your-MCORE_DIR: the CKPT_SAVE_DIR of the training}"
HF_DIR="${HF_DIR:-./model_from_hf/qwen3_hf/}"   # folder of the original Hugging Face model

exec python "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --load-model-type mg \
    --save-model-type hf \
    --model-type-hf qwen3 \
    --load-dir "$MCORE_DIR" \
    --save-dir "$HF_DIR" \
    --params-dtype bf16 \
    "$@"
