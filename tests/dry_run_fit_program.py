"""Plans against the memory of an accelerator; started by test_dry_run_fit.py.

Reads a list of [words, world size, memory in bytes, peak operations per second or null] as JSON from its first argument
and prints what each plan says as JSON. The process that makes a plan has megatron-core patched for the meta device.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.devices import Accelerator
from mindspeed_llm.dry_run import build_job_plan, job_plan
from mindspeed_llm.dry_run.plan_report import format_plan


def case(words: list[str], world_size: int, memory: int, peak: float | None) -> dict[str, Any]:
    job_plan.ACCELERATORS["A100"] = Accelerator("A100", "cuda", memory, "a test", peak, "a test")
    plan = build_job_plan(parse_pretrain_arguments(words, world_size))
    proposals = plan.proposals
    return {
        "work": vars(plan.work),
        "largest": plan.largest.total,
        "lines": format_plan(plan),
        "chunked": plan.derived.loss.chunk_size > 0,
        "proposals": None if proposals is None else [[each.text, each.memory] for each in proposals.fitting],
        "smallest": proposals.smallest.memory if proposals is not None and proposals.smallest else None,
    }


if __name__ == "__main__":
    print(json.dumps([case(*each) for each in json.loads(sys.argv[1])]))
