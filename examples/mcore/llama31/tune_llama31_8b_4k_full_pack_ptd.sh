#!/usr/bin/env bash
# Full fine-tuning of Llama 3.1 8B on neat packs of 4,096 tokens: 8 devices, TP 4, DP 2.
#     bash examples/mcore/llama31/tune_llama31_8b_4k_full_pack_ptd.sh [additional flags of pretrain_gpt.py]
# --dry-run checks the complete job in one process without devices, weights or data and prints its requirements.
# The exit status is that of the training. The output is also written to logs/.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)"
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
export PYTORCH_NPU_ALLOC_CONF="${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}"
# Seconds that torchrun gives the ranks to save a checkpoint after SIGTERM before it kills them. The default of 30 is too
# short for a model of this size.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"

# Set these here or in the environment:
NPUS_PER_NODE="${NPUS_PER_NODE:-8}"          # devices per machine
NNODES="${NNODES:-1}"                        # machines
NODE_RANK="${NODE_RANK:-0}"                  # index of this machine
MASTER_ADDR="${MASTER_ADDR:-localhost}"      # address of machine 0
MASTER_PORT="${MASTER_PORT:-6000}"
DATA_PATH="${DATA_PATH:-your-DATA_PATH: the OUTPUT_PREFIX of data_convert_llama31_instruction_pack.sh}"
TOKENIZER_MODEL="${TOKENIZER_MODEL:-your-TOKENIZER_MODEL: the folder of the Hugging Face tokenizer}"
CKPT_LOAD_DIR="${CKPT_LOAD_DIR:-your-CKPT_LOAD_DIR: the megatron-core checkpoint to start from}"
CKPT_SAVE_DIR="${CKPT_SAVE_DIR:-your-CKPT_SAVE_DIR}"

TP=4
PP=1
MBS=1
GBS=8
SEQ_LENGTH=4096
TRAIN_ITERS=2000

DISTRIBUTED_ARGS=(
    --nproc_per_node "$NPUS_PER_NODE"
    --nnodes "$NNODES"
    --node_rank "$NODE_RANK"
    --master_addr "$MASTER_ADDR"
    --master_port "$MASTER_PORT"
)

PARALLEL_ARGS=(
    --tensor-model-parallel-size "$TP"
    --pipeline-model-parallel-size "$PP"
    --sequence-parallel
    --use-distributed-optimizer
    --distributed-backend nccl
)

MODEL_ARGS=(
    --use-mcore-models
    --transformer-impl local
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --group-query-attention
    --num-query-groups 8
    --max-position-embeddings "$SEQ_LENGTH"
    --disable-bias-linear
    --swiglu
    --use-fused-swiglu
    --normalization RMSNorm
    --norm-epsilon 1e-5
    --use-fused-rmsnorm
    --position-embedding-type rope
    --rotary-base 500000
    --use-rope-scaling
    --rope-scaling-factor 8.0
    --use-fused-rotary-pos-emb
    --untie-embeddings-and-output-weights
    --make-vocab-size-divisible-by 1
    --padded-vocab-size 128256
    --attention-dropout 0.0
    --hidden-dropout 0.0
    --init-method-std 0.01
    --attention-softmax-in-fp32
    --use-flash-attn
    --no-masked-softmax-fusion
    --no-gradient-accumulation-fusion
)

TRAINING_ARGS=(
    --stage sft
    --micro-batch-size "$MBS"
    --global-batch-size "$GBS"
    --train-iters "$TRAIN_ITERS"
    --lr 7.75e-7
    --min-lr 7.75e-8
    --lr-decay-style cosine
    --lr-warmup-fraction 0.01
    --weight-decay 1e-1
    --clip-grad 1.0
    --adam-beta1 0.9
    --adam-beta2 0.95
    --initial-loss-scale 4096
    --seed 42
    --bf16
)

DATA_ARGS=(
    --data-path "$DATA_PATH"
    --split 100,0,0
    --seq-length "$SEQ_LENGTH"
    --is-instruction-dataset
    --prompt-type llama3
    --reset-position-ids
    --neat-pack
    --padded-samples
    --tokenizer-type PretrainedFromHF
    --tokenizer-name-or-path "$TOKENIZER_MODEL"
)

OUTPUT_ARGS=(
    --load "$CKPT_LOAD_DIR"
    --save "$CKPT_SAVE_DIR"
    --finetune
    --no-load-optim
    --no-load-rng
    --no-save-optim
    --no-save-rng
    --log-interval 1
    --log-throughput
    --save-interval 2000
    --eval-interval 2000
    --eval-iters 0
)

LAUNCH=(torchrun "${DISTRIBUTED_ARGS[@]}")
for flag in "$@"; do
    if [ "$flag" = --dry-run ]; then
        # One process plans for all ranks and needs their number.
        export WORLD_SIZE=$((NPUS_PER_NODE * NNODES))
        LAUNCH=(python)
    fi
done

mkdir -p logs
"${LAUNCH[@]}" "$ROOT/pretrain_gpt.py" \
    "${PARALLEL_ARGS[@]}" "${MODEL_ARGS[@]}" "${TRAINING_ARGS[@]}" "${DATA_ARGS[@]}" "${OUTPUT_ARGS[@]}" \
    "$@" 2>&1 | tee "logs/tune_llama31_8b_4k_full_pack_ptd.node$NODE_RANK.log"
