#!/usr/bin/env bash
# Shape of Llama 2 7B, for the scripts of this directory. They source this file; it is not run by itself.
set -euo pipefail

MODEL_ARGS=(
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 11008
    --num-attention-heads 32
    --norm-epsilon 1e-5
    --rotary-base 10000
    --padded-vocab-size 32000
)
