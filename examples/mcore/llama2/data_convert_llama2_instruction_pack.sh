#!/usr/bin/env bash
# Convert Alpaca-style data to plain packs for Llama 2, where each sample ends with the end token. Multi-turn data also
# needs --neat-pack, because the template llama2 ends every turn with the end token. Relative paths below refer to the
# current directory. Additional flags are passed to preprocess_data.py; if a flag is given twice, the last value is used.
set -euo pipefail

# Set these here or in the environment:
RAW_DATA_PATH="${RAW_DATA_PATH:-${DATA_PATH:-./dataset/train-00000-of-00001-a09b74b3ef9c3b56.parquet}}"  # file, directory or glob of the rows
TOKENIZER_MODEL="${TOKENIZER_MODEL:-./model_from_hf/llama-2-7b-hf/}"  # folder with tokenizer.model
OUTPUT_PREFIX="${OUTPUT_PREFIX:-./finetune_dataset/alpaca_llama2}"    # DATA_PATH of the training script

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
convert_data --prompt-type llama2 --append-eod --overwrite-cache "$@"
