#!/usr/bin/env bash
# Convert Alpaca-style data to neat-packed files for Qwen3. Relative paths below refer to the current directory.
# Additional flags are passed to preprocess_data.py; if a flag is given twice, the last value is used.
set -euo pipefail

# Set these here or in the environment:
RAW_DATA_PATH="${RAW_DATA_PATH:-${DATA_PATH:-./dataset/train-00000-of-00001-a09b74b3ef9c3b56.parquet}}"  # file, directory or glob of the rows
TOKENIZER_MODEL="${TOKENIZER_MODEL:-./model_from_hf/qwen3_hf/}"    # folder with tokenizer.json
OUTPUT_PREFIX="${OUTPUT_PREFIX:-./finetune_dataset/alpaca_qwen3}"  # DATA_PATH of the training script

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
convert_data --prompt-type qwen3 --neat-pack "$@"
