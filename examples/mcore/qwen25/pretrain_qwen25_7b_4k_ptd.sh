#!/usr/bin/env bash
# Pretraining of a Qwen2.5-7B model on documents in blocks of 4,096 tokens: 16 devices, TP 4, PP 2, DP 2.
#     bash examples/mcore/qwen25/pretrain_qwen25_7b_4k_ptd.sh [additional flags of pretrain_gpt.py]
# --dry-run checks the complete job in one process without devices or data and prints its requirements.
# The exit status is that of the training. The output is also written to logs/. The flags below are those of this job;
# examples/mcore/common.sh has those of all jobs.
set -euo pipefail

# Set these here or in the environment, which may also set NPUS_PER_NODE (8), NODE_RANK, MASTER_ADDR, MASTER_PORT, TP, PP, MBS,
# GBS, and TRAIN_ITERS (2000) or TRAIN_EPOCHS:
NNODES="${NNODES:-2}"  # machines
DATA_PATH="${DATA_PATH:-./pretrain_dataset/text_text_document}"  # OUTPUT_PREFIX of data_convert_qwen25_pretrain.sh with _text_document
TOKENIZER_MODEL="${TOKENIZER_MODEL:-your-TOKENIZER_MODEL: the folder of the Hugging Face tokenizer}"
CKPT_LOAD_DIR="${CKPT_LOAD_DIR:-}"  # a checkpoint or Hugging Face folder, to continue its pretraining; empty: random weights
CKPT_SAVE_DIR="${CKPT_SAVE_DIR:-your-CKPT_SAVE_DIR}"

PARALLEL_ARGS=(
    --tensor-model-parallel-size "${TP:-4}"
    --pipeline-model-parallel-size "${PP:-2}"
    --use-distributed-optimizer
    --overlap-grad-reduce
)
source "$(dirname "${BASH_SOURCE[0]}")/model_7b.sh"    # MODEL_ARGS
MODEL_ARGS+=(
    --init-method-std 0.02
)
TRAINING_ARGS=(
    --micro-batch-size "${MBS:-1}"
    --global-batch-size "${GBS:-256}"
    --lr 3e-4
    --min-lr 3e-5
)
DATA_ARGS=(
    --reset-position-ids
)
OUTPUT_ARGS=(
    --eval-interval 500
    --save-interval 500
    --keep-last 2
)

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
pretrain "$@"
