#!/usr/bin/env bash
# Convert Alpaca-style data to neat-packed files for Llama 3.1. Relative paths below refer to the current directory.
# Additional flags are passed to preprocess_data.py; if a flag is given twice, the last value is used.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"

# Set these here or in the environment:
DATA_PATH="${DATA_PATH:-./dataset/train-00000-of-00001-a09b74b3ef9c3b56.parquet}"  # file, directory or glob of the rows
TOKENIZER_MODEL="${TOKENIZER_MODEL:-./model_from_hf/llama31-8b-hf/}"               # folder with tokenizer.json
OUTPUT_PREFIX="${OUTPUT_PREFIX:-./finetune_dataset/alpaca}"                        # DATA_PATH of the training script

exec python "$ROOT/preprocess_data.py" \
    --input "$DATA_PATH" \
    --tokenizer-type PretrainedFromHF \
    --tokenizer-name-or-path "$TOKENIZER_MODEL" \
    --output-prefix "$OUTPUT_PREFIX" \
    --handler-name AlpacaStyleInstructionHandler \
    --prompt-type llama3 \
    --pack \
    --neat-pack \
    --seq-length 4096 \
    --workers 4 \
    --log-interval 1000 \
    "$@"
