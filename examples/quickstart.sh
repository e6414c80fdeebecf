#!/usr/bin/env bash
# Run the complete workflow on two CPU cores, from installation to a fine-tuned model: bash examples/quickstart.sh
#
# Creates a virtual environment, installs the package, generates demo data, trains a tokenizer on it, packs the samples and
# fine-tunes a Qwen2.5-shaped model of a few million parameters with tensor parallelism on two processes. Input and output
# of the training are Hugging Face folders. Finally prints a table and the answers of the model to three questions before
# and after fine-tuning. After the installation it takes at most three minutes and less than 4 GB of memory.
#
# All output goes to QUICKSTART_DIR (default ./quickstart). A second run keeps the environment and recreates everything
# else. The exit status is 0 only if the held-out loss fell to half of its first value or lower.
#
#   QUICKSTART_DIR       output directory
#   PYTHON               Python that creates the environment (default python3.11, else python3)
#   MINDSPEED_LLM_VENV   an existing environment to use instead
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DIR="${QUICKSTART_DIR:-quickstart}"
mkdir -p "$DIR"
DIR="$(cd "$DIR" && pwd)"
ENVIRONMENT="${MINDSPEED_LLM_VENV:-$DIR/venv}"
SEQ_LENGTH=1024

source "$ROOT/examples/environment.sh"

# ---- 1. install
use_environment "$ENVIRONMENT" quickstart
installed="$(installed_version)"
if [ "$(cat "$ENVIRONMENT/.quickstart" 2>/dev/null)" != "$installed" ]; then
    install_package chat,fast
    printf '%s\n' "$installed" > "$ENVIRONMENT/.quickstart"
fi

SECONDS=0
rm -rf "$DIR/data" "$DIR/tokenizer" "$DIR/packed" "$DIR/padded" "$DIR/checkpoint" "$DIR/padded_run" \
    "$DIR/before" "$DIR/after"

# ---- 2. data, tokenizer and initial model
log "creating the demo data, a tokenizer trained on it and a Hugging Face model with random weights"
python "$ROOT/examples/demo/make_data.py" "$DIR/data/demo.json"
python "$ROOT/examples/demo/make_tokenizer.py" "$DIR/data/demo.json" "$DIR/tokenizer"
python "$ROOT/examples/demo/make_model.py" "$DIR/tokenizer" "$DIR/before"

# ---- 3. preprocess: packed for the training, one sample per row for the comparison
log "preprocessing: packed; each sample attends only to itself"
PREPROCESS=(
    python "$ROOT/preprocess_data.py"
    --input "$DIR/data/demo.json"
    --tokenizer-type PretrainedFromHF
    --tokenizer-name-or-path "$DIR/tokenizer"
    --handler-name AlpacaStyleInstructionHandler
    --prompt-type qwen
    --append-eod
    --seq-length "$SEQ_LENGTH"
    --workers 2
)
"${PREPROCESS[@]}" --output-prefix "$DIR/packed/demo" --pack --neat-pack
log "preprocessing: not packed, for the comparison"
"${PREPROCESS[@]}" --output-prefix "$DIR/padded/demo"

# ---- 4. fine-tune with tensor parallelism on two processes
TRAIN=(
    torchrun --standalone --nproc_per_node 2 "$ROOT/pretrain_gpt.py"
    --device cpu
    --tensor-model-parallel-size 2
    --sequence-parallel
    --load "$DIR/before"    # the model shape is read from its config.json
    --seq-length "$SEQ_LENGTH"
    --is-instruction-dataset
    --prompt-type qwen
    --tokenizer-type PretrainedFromHF
    --tokenizer-name-or-path "$DIR/tokenizer"
    --micro-batch-size 2
    --global-batch-size 2
    --lr 3e-3
    --min-lr 2e-4
    --lr-decay-style cosine
    --lr-warmup-fraction 0.05
    --weight-decay 0.1
    --clip-grad 1.0
    --adam-beta2 0.95
    --seed 1234
)
processors="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((processors > 3 ? processors / 2 : 1))}"

log "fine-tuning on packed samples"
"${TRAIN[@]}" \
    --data-path "$DIR/packed/demo" --split 90,10,0 --reset-position-ids --neat-pack --padded-samples \
    --train-iters 160 --eval-interval 40 --eval-iters 12 --log-interval 2 \
    --save "$DIR/checkpoint" --save-interval 80 --save-hf "$DIR/after"

log "training the same model for a few steps on padded rows with one sample each"
"${TRAIN[@]}" \
    --data-path "$DIR/padded/demo" --split 90,10,0 --eval-iters 0 \
    --train-iters 12 --log-interval 1 --run-dir "$DIR/padded_run"

# ---- 5. results
log "finished in $SECONDS s after the installation"
status=0
python "$ROOT/examples/demo/summary.py" "$DIR" || status=$?
log "three questions that are not in the training data, for the model before and after fine-tuning"
echo "(a model of this size learns the form of the answers in so few steps; correct answers need more data and parameters)"
python "$ROOT/examples/chat.py" "$DIR/before" "$DIR/after"
exit "$status"
