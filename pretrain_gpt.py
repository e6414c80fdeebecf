#!/usr/bin/env python
"""Pretrain or fine-tune a language model, on packed samples or on documents.

    torchrun --nproc_per_node 2 pretrain_gpt.py --tensor-model-parallel-size 2 --data-path ./finetune_dataset/alpaca ...

With --handler-name, --data-path may name raw data, which the start preprocesses. `--help` lists all flags;
examples/mcore/ has complete commands. The program is mindspeed_llm/programs/pretrain.py.
"""

from __future__ import annotations

import sys

from mindspeed_llm.programs import pretrain
from mindspeed_llm.programs.command import run_named


def main() -> None:
    """Train as the arguments of the command line specify."""
    pretrain.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run_named("pretrain", sys.argv[1:], "pretrain_gpt.py"))
