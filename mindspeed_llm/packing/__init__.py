"""Which sample goes into which pack: a plan for the whole set, from lengths alone.

from mindspeed_llm.packing import plan_packs
plan = plan_packs(lengths, capacity=4096, seed=1234)
for samples in plan: ...        # the numbers of the samples of one pack
"""

from __future__ import annotations

from mindspeed_llm.packing.packing_algorithm import PackPlan, min_packs, plan_packs

__all__ = ["PackPlan", "min_packs", "plan_packs"]
