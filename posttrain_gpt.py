#!/usr/bin/env python
"""Fine-tune a language model on packed samples: pretrain_gpt.py under the name that MindSpeed-LLM's scripts call."""

from __future__ import annotations

import sys

from mindspeed_llm.programs.command import run_named

if __name__ == "__main__":
    sys.exit(run_named("pretrain", sys.argv[1:], "posttrain_gpt.py"))
