#!/usr/bin/env python
r"""Convert weights between the Hugging Face format and the megatron-core formats.

    python convert_ckpt.py --load-model-type hf --load-dir ./model_from_hf/qwen25-7b-hf \
        --save-model-type mg --save-dir ./model_weights/qwen25_mcore

The model shape is read from config.json. `--help` lists the flags, which have the names of MindSpeed-LLM. The program
is mindspeed_llm/programs/convert_weights.py.
"""

from __future__ import annotations

import sys

from mindspeed_llm.programs.command import run_named

if __name__ == "__main__":
    sys.exit(run_named("convert", sys.argv[1:], "convert_ckpt.py"))
