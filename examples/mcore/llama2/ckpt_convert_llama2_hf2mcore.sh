#!/usr/bin/env bash
# Convert Llama 2 from Hugging Face to megatron-core. The result can be loaded with any parallel layout: use it as
# CKPT_LOAD_DIR of tune_llama2_7B_full_pack_ptd.sh. Additional flags are passed to convert_ckpt.py.
set -euo pipefail

# Set these here or in the environment:
HF_DIR="${HF_DIR:-./model_from_hf/llama-2-7b-hf/}"          # input: folder with config.json and safetensors
MCORE_DIR="${MCORE_DIR:-./model_weights/llama2-mcore/}"   # output directory

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
convert_to_mcore --model-type-hf llama2 "$@"
