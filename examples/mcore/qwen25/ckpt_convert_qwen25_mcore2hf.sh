#!/usr/bin/env bash
# Qwen2.5 from megatron-core, for example the CKPT_SAVE_DIR of a fine-tune, to Hugging Face: the result lies in
# mg2hf inside the folder of the original model, with its config and tokenizer.
# Further flags are passed on to convert_ckpt.py.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

# What to fill in, here or in the environment:
MCORE_DIR="${MCORE_DIR:-your-MCORE_DIR: the CKPT_SAVE_DIR of the training}"
HF_DIR="${HF_DIR:-./model_from_hf/qwen25-7b-hf/}"   # folder of the original Hugging Face model

exec python "$ROOT/convert_ckpt.py" \
    --use-mcore-models \
    --model-type GPT \
    --load-model-type mg \
    --save-model-type hf \
    --model-type-hf qwen25 \
    --load-dir "$MCORE_DIR" \
    --save-dir "$HF_DIR" \
    --params-dtype bf16 \
    "$@"
