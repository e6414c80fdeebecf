#!/usr/bin/env bash
# LoRA fine-tuning of Qwen2.5-7B on neat packs of 4,096 tokens: 8 devices, DP 8. Every projection gets an adapter.
#     bash examples/mcore/qwen25/tune_qwen25_7b_4k_lora_pack.sh [additional flags of pretrain_gpt.py]
# --dry-run checks the complete job in one process without devices, weights or data and prints its requirements.
# The exit status is that of the training. The output is also written to logs/. The flags below are those of this job;
# examples/mcore/common.sh has those of all jobs.
set -euo pipefail

# Set these here or in the environment, which may also set NPUS_PER_NODE (8), NODE_RANK, MASTER_ADDR, MASTER_PORT, TP, PP, MBS,
# GBS, and TRAIN_ITERS (2000) or TRAIN_EPOCHS:
NNODES="${NNODES:-1}"  # machines
DATA_PATH="${DATA_PATH:-./finetune_dataset/alpaca_qwen25}"  # OUTPUT_PREFIX of data_convert_qwen25_instruction_pack.sh
TOKENIZER_MODEL="${TOKENIZER_MODEL:-your-TOKENIZER_MODEL: the folder of the Hugging Face tokenizer}"
CKPT_LOAD_DIR="${CKPT_LOAD_DIR:-your-CKPT_LOAD_DIR: the base model, a megatron-core checkpoint or a Hugging Face folder}"
CKPT_SAVE_DIR="${CKPT_SAVE_DIR:-your-CKPT_SAVE_DIR}"   # checkpoints of the adapter
PEFT_DIR="${PEFT_DIR:-$CKPT_SAVE_DIR/peft}"            # the trained adapter as a folder of peft

PARALLEL_ARGS=(
    --tensor-model-parallel-size "${TP:-1}"
    --pipeline-model-parallel-size "${PP:-1}"
    --use-distributed-optimizer
)
source "$(dirname "${BASH_SOURCE[0]}")/model_7b.sh"    # MODEL_ARGS
TRAINING_ARGS=(
    --lora-target-modules all-linear
    --lora-r 16
    --lora-alpha 32
    --micro-batch-size "${MBS:-1}"
    --global-batch-size "${GBS:-16}"
    --lr 1e-4
    --min-lr 1e-5
)
DATA_ARGS=(
    --prompt-type qwen
    --neat-pack
    --padded-samples
)
OUTPUT_ARGS=(
    --save-hf "$PEFT_DIR"
    --eval-interval 2000
)

source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
tune "$@"
