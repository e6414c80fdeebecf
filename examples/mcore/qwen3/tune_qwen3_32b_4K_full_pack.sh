#!/usr/bin/env bash
# Full fine-tuning of Qwen3-32B on neat packs of 4,096 tokens: 2 machines with 8 devices each, TP 8, PP 2.
#     bash examples/mcore/qwen3/tune_qwen3_32b_4K_full_pack.sh [additional flags of pretrain_gpt.py]
# --dry-run checks the complete job in one process without devices, weights or data and prints its requirements.
# The exit status is that of the training. The output is also written to logs/. The flags below are those of this job;
# examples/mcore/common.sh has those of all jobs.
set -euo pipefail

# Set these here or in the environment, which may also set NPUS_PER_NODE (8), NODE_RANK, MASTER_ADDR, MASTER_PORT, TP, PP, MBS,
# GBS, and TRAIN_ITERS (2000) or TRAIN_EPOCHS:
NNODES="${NNODES:-2}"  # machines
DATA_PATH="${DATA_PATH:-./finetune_dataset/alpaca_qwen3}"  # OUTPUT_PREFIX of data_convert_qwen3_instruction_pack.sh
TOKENIZER_MODEL="${TOKENIZER_MODEL:-your-TOKENIZER_MODEL: the folder of the Hugging Face tokenizer}"
CKPT_LOAD_DIR="${CKPT_LOAD_DIR:-your-CKPT_LOAD_DIR: the megatron-core checkpoint to start from}"
CKPT_SAVE_DIR="${CKPT_SAVE_DIR:-your-CKPT_SAVE_DIR}"

PARALLEL_ARGS=(
    --tensor-model-parallel-size "${TP:-8}"
    --pipeline-model-parallel-size "${PP:-2}"
    --use-distributed-optimizer
)
MODEL_ARGS=(
    --num-layers 64
    --hidden-size 5120
    --ffn-hidden-size 25600
    --num-attention-heads 64
    --group-query-attention
    --num-query-groups 8
    --kv-channels 128
    --qk-layernorm
    --norm-epsilon 1e-6
    --rotary-base 1000000
    --padded-vocab-size 151936
)
TRAINING_ARGS=(
    --micro-batch-size "${MBS:-1}"
    --global-batch-size "${GBS:-16}"
    --lr 1.25e-6
    --min-lr 1.25e-7
    --initial-loss-scale 4096
)
DATA_ARGS=(
    --prompt-type qwen3
    --neat-pack
    --padded-samples
)
OUTPUT_ARGS=(
    --no-save-optim
    --no-save-rng
    --eval-interval 2000
)

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tune "$@"
