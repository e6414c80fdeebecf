#!/usr/bin/env bash
# What the scripts of this directory share. They set their own values and source this file; it is not run by itself.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# Convert the rows of DATA_PATH to packed files of 4,096 tokens.
convert_data() {
    exec python "$ROOT/preprocess_data.py" \
        --input "$DATA_PATH" \
        --tokenizer-type PretrainedFromHF \
        --tokenizer-name-or-path "$TOKENIZER_MODEL" \
        --output-prefix "$OUTPUT_PREFIX" \
        --handler-name AlpacaStyleInstructionHandler \
        --pack \
        --seq-length 4096 \
        --workers 4 \
        "$@"
}

# Convert the raw text of DATA_PATH to document files for pretraining.
convert_text() {
    exec python "$ROOT/preprocess_data.py" \
        --input "$DATA_PATH" \
        --tokenizer-type PretrainedFromHF \
        --tokenizer-name-or-path "$TOKENIZER_MODEL" \
        --output-prefix "$OUTPUT_PREFIX" \
        --handler-name GeneralPretrainHandler \
        --output-format document \
        --append-eod \
        --workers 4 \
        "$@"
}

# Convert the Hugging Face folder HF_DIR to the megatron-core checkpoint MCORE_DIR.
convert_to_mcore() {
    convert_checkpoint --load-model-type hf --save-model-type mg --load-dir "$HF_DIR" --save-dir "$MCORE_DIR" "$@"
}

# Convert the megatron-core checkpoint MCORE_DIR to mg2hf/ inside the Hugging Face folder HF_DIR.
convert_to_hf() {
    convert_checkpoint --load-model-type mg --save-model-type hf --load-dir "$MCORE_DIR" --save-dir "$HF_DIR" "$@"
}

convert_checkpoint() {
    exec python "$ROOT/convert_ckpt.py" --use-mcore-models --model-type GPT --params-dtype bf16 "$@"
}

# Fine-tune with the flags in PARALLEL_ARGS, MODEL_ARGS, TRAINING_ARGS, DATA_ARGS and OUTPUT_ARGS, and those given here.
tune() {
    local stage=(
        --stage sft
        --train-iters 2000
        --split 100,0,0
        --is-instruction-dataset
        --reset-position-ids
        --load "$CKPT_LOAD_DIR"
        --finetune
        --no-load-optim
        --no-load-rng
        --save-interval 2000
        --eval-iters 0
    )
    train "${stage[@]}" -- "$@"
}

# Pretrain with the same flags: from random weights, or from those of CKPT_LOAD_DIR if it is set.
pretrain() {
    local stage=(
        --stage pretrain
        --split 99,1,0
        --eval-iters 10
    )
    if [ -n "${CKPT_LOAD_DIR:-}" ]; then
        stage+=(--load "$CKPT_LOAD_DIR" --finetune)
    fi
    train "${stage[@]}" -- "$@"
}

# Start the training: train FLAGS_OF_THE_STAGE -- FURTHER_FLAGS.
# --dry-run plans in one process. The output is also written to logs/; the status is that of the training.
train() {
    local stage=()
    while [ "$1" != -- ]; do
        stage+=("$1")
        shift
    done
    shift
    export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
    export PYTORCH_NPU_ALLOC_CONF="${PYTORCH_NPU_ALLOC_CONF:-expandable_segments:True}"
    # Seconds that torchrun gives the ranks to save a checkpoint after SIGTERM before it kills them. The default of 30 is
    # too short for models of this size.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-900}"
    local devices="${NPUS_PER_NODE:-8}"       # per machine
    local machines="${NNODES:-1}"
    local machine="${NODE_RANK:-0}"           # index of this machine
    local launch=(
        torchrun
        --nproc_per_node "$devices"
        --nnodes "$machines"
        --node_rank "$machine"
        --master_addr "${MASTER_ADDR:-localhost}"  # address of machine 0
        --master_port "${MASTER_PORT:-6000}"
    )
    local flag
    for flag in "$@"; do
        if [ "$flag" = --dry-run ]; then
            # One process plans for all ranks and needs their number.
            export WORLD_SIZE=$((devices * machines))
            launch=(python)
        fi
    done
    local shared=(
        --sequence-parallel
        --distributed-backend nccl
        --use-mcore-models
        --transformer-impl local
        --disable-bias-linear
        --swiglu
        --use-fused-swiglu
        --normalization RMSNorm
        --use-fused-rmsnorm
        --position-embedding-type rope
        --use-fused-rotary-pos-emb
        --untie-embeddings-and-output-weights
        --make-vocab-size-divisible-by 1
        --max-position-embeddings 4096
        --attention-dropout 0.0
        --hidden-dropout 0.0
        --init-method-std 0.01
        --attention-softmax-in-fp32
        --use-flash-attn
        --no-masked-softmax-fusion
        --no-gradient-accumulation-fusion
        --lr-decay-style cosine
        --lr-warmup-fraction 0.01
        --weight-decay 1e-1
        --clip-grad 1.0
        --adam-beta1 0.9
        --adam-beta2 0.95
        --seed 42
        --bf16
        --data-path "$DATA_PATH"
        --seq-length 4096
        --tokenizer-type PretrainedFromHF
        --tokenizer-name-or-path "$TOKENIZER_MODEL"
        --save "$CKPT_SAVE_DIR"
        --log-interval 1
        --log-throughput
    )
    mkdir -p logs
    "${launch[@]}" "$ROOT/pretrain_gpt.py" "${shared[@]}" "${stage[@]}" \
        "${PARALLEL_ARGS[@]}" "${MODEL_ARGS[@]}" "${TRAINING_ARGS[@]}" "${DATA_ARGS[@]}" "${OUTPUT_ARGS[@]}" \
        "$@" 2>&1 | tee "logs/$(basename "$0" .sh).node$machine.log"
}
