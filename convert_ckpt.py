#!/usr/bin/env python
"""Convert weights between Hugging Face's format and megatron-core's.

    python convert_ckpt.py --load-model-type hf --load-dir ./model_from_hf/qwen25-7b-hf \\
        --save-model-type mg --save-dir ./model_weights/qwen25_mcore

The shape of the model is read from its config.json. `--help` lists the flags, which are MindSpeed-LLM's. Ends with
status 2 after a user's error; nothing is left half-written.
"""

from __future__ import annotations

import sys

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.entry_point import run_program


def main() -> None:
    """Run the command line."""
    configure_logging()
    arguments = parse_convert_arguments(sys.argv[1:])
    from mindspeed_llm.conversion import convert

    print(f"wrote {convert(arguments)}")


if __name__ == "__main__":
    sys.exit(run_program(main, "convert_ckpt.py"))
