#!/usr/bin/env bash
# Merge a LoRA adapter, for example that of tune_llama2_7b_lora_pack.sh, into Llama 2, and convert the result to
# Hugging Face. It is written to mg2hf/ inside the folder of the original model, together with its config and tokenizer.
# Additional flags are passed to convert_ckpt.py.
set -euo pipefail

# Set these here or in the environment:
MCORE_DIR="${MCORE_DIR:-./model_weights/llama2-mcore/}"   # base model: the CKPT_LOAD_DIR of the training
LORA_DIR="${LORA_DIR:-your-LORA_DIR: the CKPT_SAVE_DIR of the training, or a folder of peft}"
HF_DIR="${HF_DIR:-./model_from_hf/llama-2-7b-hf/}"   # folder of the original Hugging Face model

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
convert_to_hf --lora-load "$LORA_DIR" --model-type-hf llama2 "$@"
