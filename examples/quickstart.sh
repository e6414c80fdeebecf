#!/usr/bin/env bash
# Run the complete workflow on two CPU cores, from nothing to a model that answers: bash examples/quickstart.sh
#
# Creates a virtual environment, installs the package, generates the data, trains a tokenizer on them, pretrains a tiny
# Qwen2.5-shaped model on text, and fine-tunes it on packed instructions with tensor parallelism on two processes. Input
# and output of every training are Hugging Face folders. Finally the random, the pretrained and the fine-tuned model are
# asked 20 questions that occur in no data. The model learns four rules over twelve letters (examples/quickstart/rules.py).
# After the installation it uses about five minutes of processor time on two cores and 1 GB of memory.
#
# All output goes to QUICKSTART_DIR (default ./quickstart). A second run keeps the environment and recreates everything
# else. The exit status is 0 only if the fine-tuned model answers at least 15 of the 20 questions and the baselines few.
#
#   QUICKSTART_DIR       output directory
#   QUICKSTART_SEED      seed of the data, the initial weights and the training (default 1)
#   QUICKSTART_RANKS     processes of the fine-tuning, with tensor parallelism: 2 (default) or 1
#   PYTHON               Python that creates the environment (default python3.11, else python3)
#   MINDSPEED_LLM_VENV   an existing environment to use instead; its torch is kept, and the package is installed there
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DIR="${QUICKSTART_DIR:-quickstart}"
mkdir -p "$DIR"
DIR="$(cd "$DIR" && pwd)"
ENVIRONMENT="${MINDSPEED_LLM_VENV:-$DIR/venv}"
SEED="${QUICKSTART_SEED:-1}"
RANKS="${QUICKSTART_RANKS:-2}"
SEQ_LENGTH=1024    # tokens of a step
PRETRAINING_STEPS=500
FINE_TUNING_STEPS=560

source "$ROOT/examples/environment.sh"

# ---- 1. install
use_environment "$ENVIRONMENT" quickstart
installed="$(installed_version)"
if [ "$(cat "$ENVIRONMENT/.quickstart" 2>/dev/null)" != "$installed" ]; then
    install_package chat,fast
    printf '%s\n' "$installed" > "$ENVIRONMENT/.quickstart"
fi
print_versions torch megatron-core transformers tokenizers numpy

SECONDS=0
rm -rf "$DIR/data" "$DIR/tokenizer" "$DIR/text" "$DIR/packed" "$DIR/padded" "$DIR/random" "$DIR/pretraining" \
    "$DIR/pretrained" "$DIR/checkpoint" "$DIR/tuned" "$DIR/from_random" "$DIR/tuned_from_random" "$DIR/padded_run"

# ---- 2. data, tokenizer and initial model
log "generating text, instructions and questions, a tokenizer and a Hugging Face model with random weights"
python "$ROOT/examples/quickstart/make_data.py" "$DIR/data" --seed "$SEED"
python "$ROOT/examples/demo/make_tokenizer.py" "$DIR/data/instructions.json" "$DIR/tokenizer" --vocab-size 390
python "$ROOT/examples/demo/make_model.py" "$DIR/tokenizer" "$DIR/random" --seed "$SEED" \
    --layers 3 --hidden-size 96 --intermediate-size 256 --heads 4 --groups 2 --scale 0.06

# ---- 3. preprocess: text as documents; instructions packed for the training, and one per row for the comparison
TOKENIZER=(--tokenizer-type PretrainedFromHF --tokenizer-name-or-path "$DIR/tokenizer")
preprocess() {
    python "$ROOT/preprocess_data.py" "${TOKENIZER[@]}" --append-eod --workers 2 "$@"
}
INSTRUCTIONS=(
    --input "$DIR/data/instructions.json"
    --handler-name AlpacaStyleInstructionHandler
    --prompt-type qwen
    --seq-length "$SEQ_LENGTH"
)
log "preprocessing: text for pretraining"
preprocess --input "$DIR/data/documents.jsonl" --handler-name GeneralPretrainHandler --output-format document \
    --output-prefix "$DIR/text/train"
log "preprocessing: instructions, packed; each sample attends only to itself"
preprocess "${INSTRUCTIONS[@]}" --output-prefix "$DIR/packed/train" --pack --neat-pack
log "preprocessing: instructions, not packed, for the comparison"
preprocess "${INSTRUCTIONS[@]}" --output-prefix "$DIR/padded/train"

# ---- 4. train
# train PROCESSES [flag…]: run pretrain_gpt.py; more than one process is tensor parallel.
train() {
    local processes="$1"
    shift
    local layout=()
    # Without --sequence-parallel: for a model of this size its additional collectives cost more than they save.
    [ "$processes" = 1 ] || layout=(--tensor-model-parallel-size "$processes")
    torchrun --standalone --nproc_per_node "$processes" "$ROOT/pretrain_gpt.py" "${layout[@]}" "${TOKENIZER[@]}" \
        --device cpu \
        --seq-length "$SEQ_LENGTH" \
        --micro-batch-size 1 \
        --global-batch-size 1 \
        --lr 3e-3 \
        --min-lr 3e-4 \
        --lr-decay-style cosine \
        --lr-warmup-fraction 0.05 \
        --weight-decay 0.1 \
        --clip-grad 1.0 \
        --adam-beta2 0.95 \
        --seed "$SEED" \
        --log-interval 10 \
        "$@"
}
# fine_tune PROCESSES MODEL NAME [flag…]: fine-tune a Hugging Face folder on packed instructions.
FINE_TUNING=(--is-instruction-dataset --prompt-type qwen)
fine_tune() {
    train "$1" "${FINE_TUNING[@]}" --load "$2" --data-path "$DIR/packed/train" --split 98,2,0 \
        --reset-position-ids --neat-pack --padded-samples --train-iters "$FINE_TUNING_STEPS" "${@:3}"
}
processors="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((processors > 3 ? processors / 2 : 1))}"

log "pretraining on text; beside it, as a baseline, fine-tuning of the random weights (log: $DIR/from_random.log)"
fine_tune 1 "$DIR/random" --eval-iters 0 --save "$DIR/from_random" --save-hf "$DIR/tuned_from_random" \
    > "$DIR/from_random.log" 2>&1 &
baseline=$!
train 1 --load "$DIR/random" --data-path "$DIR/text/train_text_document" --split 98,2,0 --reset-position-ids \
    --reset-attention-mask --train-iters "$PRETRAINING_STEPS" --eval-iters 5 \
    --save "$DIR/pretraining" --save-hf "$DIR/pretrained"
wait "$baseline" || { tail -20 "$DIR/from_random.log"; exit 1; }

log "fine-tuning of the pretrained model on packed samples, tensor parallel on $RANKS processes"
fine_tune "$RANKS" "$DIR/pretrained" --eval-interval 140 --eval-iters 5 \
    --generate-prompts "$DIR/data/questions.jsonl" --generate-tokens 16 \
    --save "$DIR/checkpoint" --save-hf "$DIR/tuned"

log "the same for a few steps on padded rows with one sample each"
train "$RANKS" "${FINE_TUNING[@]}" --load "$DIR/pretrained" --data-path "$DIR/padded/train" --split 98,2,0 \
    --eval-iters 0 --train-iters 20 --no-save-model --run-dir "$DIR/padded_run"

# ---- 5. results
log "results"
python "$ROOT/examples/quickstart/summary.py" "$DIR"
log "20 questions whose lists occur in no data"
unset OMP_NUM_THREADS    # one process; it uses all cores
status=0
python "$ROOT/examples/quickstart/ask.py" "$DIR/data" --random "$DIR/random" --pretrained "$DIR/pretrained" \
    --from-random "$DIR/tuned_from_random" --tuned "$DIR/tuned" || status=$?
log "pages of the two runs: curves, packing, and what the model answered when"
python -m mindspeed_llm.reports "$DIR/pretraining/run" "$DIR/checkpoint/run" --html
log "finished in $SECONDS s after the installation"
exit "$status"
