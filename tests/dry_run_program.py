"""Lengths of runs as the dry run computes them; started by test_dry_run_steps.py.

Reads a list of command lines, each a list of words, as JSON from its first argument, and prints [iterations, packs] of
each as JSON. The process that makes a plan has megatron-core patched for the meta device and cannot train.
"""

from __future__ import annotations

import json
import sys

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.dry_run import build_job_plan

if __name__ == "__main__":
    lengths = [build_job_plan(parse_pretrain_arguments(words, 1)).derived.length for words in json.loads(sys.argv[1])]
    print(json.dumps([[length.iterations, length.consumed_samples] for length in lengths]))
