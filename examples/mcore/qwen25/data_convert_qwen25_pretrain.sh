#!/usr/bin/env bash
# Convert raw text to document files for pretraining Qwen2.5. Relative paths below refer to the current directory.
# Additional flags are passed to preprocess_data.py; if a flag is given twice, the last value is used.
set -euo pipefail

# Set these here or in the environment:
RAW_DATA_PATH="${RAW_DATA_PATH:-${DATA_PATH:-./dataset/train-00000-of-00042-d964455e17e96d5a.parquet}}"  # file, directory or glob with a column text
TOKENIZER_MODEL="${TOKENIZER_MODEL:-./model_from_hf/qwen25-7b-hf/}"  # folder with tokenizer.json
OUTPUT_PREFIX="${OUTPUT_PREFIX:-./pretrain_dataset/text}"            # DATA_PATH of the training: this with _text_document

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
convert_text "$@"
