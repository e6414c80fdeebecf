#!/usr/bin/env bash
# Shape of Qwen2.5-7B, for the scripts of this directory. They source this file; it is not run by itself.
set -euo pipefail

MODEL_ARGS=(
    --num-layers 28
    --hidden-size 3584
    --ffn-hidden-size 18944
    --num-attention-heads 28
    --group-query-attention
    --num-query-groups 4
    --add-qkv-bias
    --norm-epsilon 1e-6
    --rotary-base 1000000
    --padded-vocab-size 152064
)
