#!/usr/bin/env bash
# Convert Llama 2 from megatron-core, for example the CKPT_SAVE_DIR of a fine-tuning run, to Hugging Face. The result is
# written to mg2hf/ inside the folder of the original model, together with its config and tokenizer. Additional flags are
# passed to convert_ckpt.py.
set -euo pipefail

# Set these here or in the environment:
MCORE_DIR="${MCORE_DIR:-your-MCORE_DIR: the CKPT_SAVE_DIR of the training}"
HF_DIR="${HF_DIR:-./model_from_hf/llama-2-7b-hf/}"   # folder of the original Hugging Face model

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
convert_to_hf --model-type-hf llama2 "$@"
