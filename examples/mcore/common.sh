#!/usr/bin/env bash
# What the scripts of this directory share. They set their own values and source this file; it is not run by itself.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# Convert the rows of RAW_DATA_PATH to packed files of 4,096 tokens.
convert_data() {
    notice_of_data_path
    exec python "$ROOT/preprocess_data.py" \
        --input "$RAW_DATA_PATH" \
        --tokenizer-type PretrainedFromHF \
        --tokenizer-name-or-path "$TOKENIZER_MODEL" \
        --output-prefix "$OUTPUT_PREFIX" \
        --handler-name AlpacaStyleInstructionHandler \
        --pack \
        --seq-length 4096 \
        --workers 4 \
        "$@"
}

# DATA_PATH is the prefix of the packed files in the training scripts, and was the raw data in the scripts that convert them.
notice_of_data_path() {
    if [ -n "${DATA_PATH:-}" ] && [ "$RAW_DATA_PATH" = "$DATA_PATH" ]; then
        echo "$(basename "$0"): notice: DATA_PATH is read as the raw data; set RAW_DATA_PATH instead, because DATA_PATH" \
            "is the prefix of the packed files in the training scripts" >&2
    fi
}

# Convert the raw text of RAW_DATA_PATH to document files for pretraining.
convert_text() {
    notice_of_data_path
    exec python "$ROOT/preprocess_data.py" \
        --input "$RAW_DATA_PATH" \
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

# Set LENGTH_ARGS to the length of the run: TRAIN_ITERS or TRAIN_EPOCHS, else 2,000 updates, unless the flags have one.
choose_length() {
    LENGTH_ARGS=(--train-iters "${TRAIN_ITERS:-2000}")
    [ -z "${TRAIN_EPOCHS:-}" ] || LENGTH_ARGS=(--train-epochs "$TRAIN_EPOCHS")
    local flag
    for flag in "$@"; do
        case "${flag//_/-}" in --train-iters*|--train-epochs*|--train-samples*) LENGTH_ARGS=() ;; esac
    done
}

# Succeed if the command line has a flag: has_flag NAME FLAGS
has_flag() {
    local name="$1" word
    shift
    for word in "$@"; do
        word="${word%%=*}"
        [ "${word//_/-}" != "$name" ] || return 0
    done
    return 1
}

# Stop with status 2 if a number is not one, two variables exclude each other, or a variable that the run needs is not
# set and no flag replaces it.
#     check_variables RUNS FLAGS     RUNS is no for a command that only plans
check_variables() {
    local runs="$1" name flag problems=()
    shift
    for name in NPUS_PER_NODE NNODES NODE_RANK; do
        # Empty is the default of the script.
        [[ "${!name:-0}" =~ ^(0|[1-9][0-9]*)$ ]] || problems+=("$name=${!name}: not a whole number")
    done
    for name in NPUS_PER_NODE NNODES; do
        [ "${!name:-1}" != 0 ] || problems+=("$name=0: at least 1")
    done
    if [ -n "${TRAIN_ITERS:-}" ] && [ -n "${TRAIN_EPOCHS:-}" ]; then
        problems+=("TRAIN_ITERS=$TRAIN_ITERS and TRAIN_EPOCHS=$TRAIN_EPOCHS are both set; unset one")
    fi
    if [ "$runs" = yes ]; then
        for name in TOKENIZER_MODEL:--tokenizer-name-or-path CKPT_LOAD_DIR:--load CKPT_SAVE_DIR:--save; do
            flag="${name#*:}" name="${name%%:*}"
            if [[ "${!name:-}" = your-* ]] && ! has_flag "$flag" "$@"; then
                problems+=("$name is not set; set it in the environment or in the script, or give $flag")
            fi
        done
    fi
    [ "${#problems[@]}" -gt 0 ] || return 0
    printf '%s: error: %s\n' "$(basename "$0")" "${problems[0]}" >&2
    [ "${#problems[@]}" -eq 1 ] || printf '    %s\n' "${problems[@]:1}" >&2
    exit 2
}

# Start the training: train FLAGS_OF_THE_STAGE -- FURTHER_FLAGS.
# The command is checked in one process first, so that an error is the last thing on the screen and not above the output of
# torchrun. --dry-run plans in one process. The output is also written to logs/; the status is that of the training.
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
    local runs=yes
    if has_flag --dry-run "$@" || has_flag --help "$@"; then
        runs=no
    fi
    check_variables "$runs" "$@"
    if [ "$runs" = no ] || has_flag --check-only "$@"; then
        # One process plans for all ranks and needs their number.
        export WORLD_SIZE=$((devices * machines))
        launch=(python)
    fi
    choose_length "$@"
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
    local command=(
        "$ROOT/pretrain_gpt.py" "${shared[@]}" "${stage[@]}" ${LENGTH_ARGS[@]+"${LENGTH_ARGS[@]}"}
        "${PARALLEL_ARGS[@]}" "${MODEL_ARGS[@]}" "${TRAINING_ARGS[@]}" "${DATA_ARGS[@]}" "${OUTPUT_ARGS[@]}" "$@"
    )
    if [ "${launch[0]}" = torchrun ]; then
        WORLD_SIZE=$((devices * machines)) GROUP_WORLD_SIZE="$machines" GROUP_RANK="$machine" \
            python "${command[@]}" --check-only >/dev/null
    fi
    if has_flag --check-only "$@"; then
        exec python "${command[@]}"
    fi
    mkdir -p logs
    # Ctrl-C reaches tee as well: with -i it stays until the training has saved its checkpoint and said so.
    "${launch[@]}" "${command[@]}" 2>&1 | tee -i "logs/$(basename "$0" .sh).node$machine.log"
}
