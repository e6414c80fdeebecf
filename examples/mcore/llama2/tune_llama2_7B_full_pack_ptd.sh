#!/usr/bin/env bash
# Full fine-tuning of Llama 2 7B on packs of 4,096 tokens: 8 devices, TP 8. The packs are plain (not
# neat) packs: with --reset-position-ids their samples are separated at the end tokens.
#     bash examples/mcore/llama2/tune_llama2_7B_full_pack_ptd.sh [additional flags of pretrain_gpt.py]
# --dry-run checks the complete job in one process without devices, weights or data and prints its requirements.
# The exit status is that of the training. The output is also written to logs/. The flags below are those of this job;
# examples/mcore/common.sh has those of all jobs.
set -euo pipefail

# Set these here or in the environment, which may also set NPUS_PER_NODE (8), NODE_RANK, MASTER_ADDR, MASTER_PORT, TP, PP, MBS,
# GBS, and TRAIN_ITERS (2000) or TRAIN_EPOCHS:
NNODES="${NNODES:-1}"  # machines
DATA_PATH="${DATA_PATH:-./finetune_dataset/alpaca_llama2}"  # OUTPUT_PREFIX of data_convert_llama2_instruction_pack.sh
TOKENIZER_MODEL="${TOKENIZER_MODEL:-your-TOKENIZER_MODEL: the folder of the Hugging Face tokenizer (tokenizer.model)}"
CKPT_LOAD_DIR="${CKPT_LOAD_DIR:-your-CKPT_LOAD_DIR: the megatron-core checkpoint to start from}"
CKPT_SAVE_DIR="${CKPT_SAVE_DIR:-your-CKPT_SAVE_DIR}"

PARALLEL_ARGS=(
    --tensor-model-parallel-size "${TP:-8}"
    --pipeline-model-parallel-size "${PP:-1}"
)
source "$(dirname "${BASH_SOURCE[0]}")/model_7b.sh"    # MODEL_ARGS
TRAINING_ARGS=(
    --micro-batch-size "${MBS:-4}"
    --global-batch-size "${GBS:-128}"
    --lr 5e-5
    --min-lr 1.25e-7
)
DATA_ARGS=(
    --prompt-type llama2
)
OUTPUT_ARGS=(
    --eval-interval 1000
)

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tune "$@"
