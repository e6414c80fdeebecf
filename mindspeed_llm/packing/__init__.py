"""Plan which samples go into which pack, from the lengths of all samples.

from mindspeed_llm.packing import plan_packs
plan = plan_packs(lengths, capacity=4096, seed=1234)
for samples in plan: ...        # int64 [samples of the pack]: the numbers of the samples of one pack
"""

from __future__ import annotations

from mindspeed_llm.packing.packing_algorithm import PackPlan, min_packs, plan_packs

__all__ = ["PackPlan", "min_packs", "plan_packs"]
