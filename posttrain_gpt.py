#!/usr/bin/env python
"""Fine-tune a language model on packed samples: pretrain_gpt.py under the name that MindSpeed-LLM's scripts call."""

from __future__ import annotations

import sys

from mindspeed_llm.programs import pretrain

if __name__ == "__main__":
    sys.exit(pretrain.run(sys.argv[1:], "posttrain_gpt.py"))
