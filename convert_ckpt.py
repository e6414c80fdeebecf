#!/usr/bin/env python
r"""Convert weights between the Hugging Face format and the megatron-core formats.

    python convert_ckpt.py --load-model-type hf --load-dir ./model_from_hf/qwen25-7b-hf \
        --save-model-type mg --save-dir ./model_weights/qwen25_mcore

The model shape is read from config.json. `--help` lists the flags, which have the names of MindSpeed-LLM. After a
user error the exit status is 2 and no partial output remains.
"""

from __future__ import annotations

import sys

from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.entry_point import run_program


def main() -> None:
    """Convert the weights as the command-line arguments specify."""
    configure_logging()
    arguments = parse_convert_arguments(sys.argv[1:])
    # Imported late: it imports torch, which --help and the check of the arguments do not need.
    from mindspeed_llm.conversion import convert

    print(f"wrote {convert(arguments)}")


if __name__ == "__main__":
    sys.exit(run_program(main, "convert_ckpt.py"))
