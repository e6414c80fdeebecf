#!/usr/bin/env python
"""Fine-tune a language model on packed samples: pretrain_gpt.py under the name that MindSpeed-LLM's scripts call."""

from __future__ import annotations

import sys

from mindspeed_llm.entry_point import run_program
from pretrain_gpt import main

if __name__ == "__main__":
    sys.exit(run_program(main, "posttrain_gpt.py"))
