"""Plans of tune scripts; started by test_script_plans.py.

Reads a list of [world size, command line as a list of words] as JSON from its first argument and prints the lines and
the numbers of each plan as JSON. Of every job, one rank of each kind is built. With `traced` as second argument a
micro-batch passes through each of them, which takes most of the time of a dry run.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.devices import apply_patches

apply_patches("meta")

from mindspeed_llm.dry_run import build_job_plan, rank_memory  # noqa: E402
from mindspeed_llm.dry_run.plan_report import format_plan  # noqa: E402


def plan_of(ranks: int, words: list[str]) -> dict[str, Any]:
    plan = build_job_plan(parse_pretrain_arguments(words, ranks))
    return {
        "lines": format_plan(plan),
        "parameters": plan.parameters,
        "trained": plan.trained,
        "layers": list({rank.pipeline: sum(rank.layers) for rank in plan.ranks}.values()),
        "largest": plan.largest.total,
    }


if __name__ == "__main__":
    rank_memory.MAX_RANKS = 0
    if "traced" not in sys.argv[2:]:
        rank_memory.trace_micro_batch = lambda *_: None
    print(json.dumps([plan_of(ranks, words) for ranks, words in json.loads(sys.argv[1])]))
