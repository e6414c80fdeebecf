"""Plans made for test_dry_run.py: a process that makes one has megatron-core patched for the meta device.

Reads a list of [world size, extra flags] as JSON from its first argument and prints what was found as JSON. The flag
TIED stands for leaving --untie-embeddings-and-output-weights out, GPT2 for a model of GPT-2's shape.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from mindspeed_llm.devices import Device, apply_patches

apply_patches("meta")

from saved_tensors import saved_bytes  # noqa: E402
from tiny import GPT2_SHAPE, SHAPE, tiny_arguments  # noqa: E402
from tiny_model import derived_of  # noqa: E402

from mindspeed_llm.dry_run import ActivationMemory, SavedByOps, build_job_plan  # noqa: E402
from mindspeed_llm.dry_run.rank_memory import META, simulated_rank  # noqa: E402
from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer  # noqa: E402


def case(world_size: int, extra: str) -> dict[str, Any]:
    """One plan, and under tensor parallelism alone what autograd keeps of one micro-batch."""
    shape = GPT2_SHAPE if extra.endswith("GPT2") else SHAPE
    arguments = tiny_arguments("--device cpu " + extra.removesuffix("TIED").removesuffix("GPT2"), world_size, shape)
    arguments.model.untie_embeddings_and_output_weights &= not extra.endswith("TIED")
    plan = build_job_plan(arguments)
    ranks = [{**vars(rank), "total": rank.total} for rank in plan.ranks]
    found: dict[str, Any] = {"parameters": plan.parameters, "ranks": ranks, "trained": plan.trained}
    found["padded"] = plan.derived.vocabulary.padded
    loss = found["loss_chunk_size"] = plan.derived.loss.chunk_size
    if world_size == arguments.parallel.tensor_model_parallel_size:
        with simulated_rank(arguments, 0):
            with META:
                model_and_optimizer = setup_model_and_optimizer(
                    arguments, Device("meta"), derived_of(arguments, 3, device="meta")
                )
            found["saved"] = saved_bytes(model_and_optimizer, arguments, META)
        estimate = ActivationMemory(arguments, plan.derived.vocabulary.padded, SavedByOps(), loss)
        layers = arguments.model.num_layers
        found["estimate"] = estimate.embedding() + estimate.chunk(layers) + estimate.head()
    return found


if __name__ == "__main__":
    print(json.dumps([case(world_size, extra) for world_size, extra in json.loads(sys.argv[1])]))
