"""The one table that a run prints at each start: machines, layout, versions, attention, fused operators, data.

start      going on from checkpoints/iter_0000400, iteration 400
machines   node-a  ranks 0–7   8 × npu Ascend910B3 (hccl)
           node-b  ranks 8–15  8 × npu Ascend910B3 (hccl)
layout     16 ranks: tensor 4 × pipeline 2 × data 2, sequence parallel; 952,320 parameters on rank 0
versions   mindspeed_llm 0.1.0, torch 2.13.0, megatron-core 0.16.1, torch_npu 2.13.0, CANN 9.0.0
attention  npu_fusion_attention: it supports torch.bfloat16 on npu
operators  fused: npu_rms_norm, npu_swiglu, npu_rotary_mul, torch._fused_adamw_
data       10,240 neat packs to train on, 0 held out; an epoch is 1,280.0 iterations of 8, the run 2,000 iterations
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.console.tables import columns
from mindspeed_llm.devices.meeting import Facts, by_machine, ranks_in_words


def machine_lines(every: Sequence[Facts]) -> list[str]:
    """One line a machine: its name, its ranks, its devices."""
    hosts: dict[str, list[Facts]] = {}
    for one in every:
        hosts.setdefault(one.host, []).append(one)
    cells = []
    for host, facts in hosts.items():
        devices = Counter(one.device for one in facts)
        cells.append(
            (
                host,
                ranks_in_words(one.rank for one in facts),
                ", ".join(f"{count} × {device}" for device, count in devices.items()),
            )
        )
    return columns(cells, left=3)


def version_lines(every: Sequence[Facts]) -> list[str]:
    """The versions; where machines differ, a line for each kind, which is not forbidden but ought to be seen."""
    said = {one.rank: ", ".join(f"{name} {value}" for name, value in one.versions.items()) for one in every}
    kinds = by_machine(every, said)
    if len(kinds) == 1:
        return [kinds[0][1]]
    return ["DIFFERENT on the machines of this job:", *(f"{machines}: {kind}" for machines, kind in kinds)]


def layout_words(arguments: PretrainArguments, parameters: int) -> str:
    """The layout, and the parameters of this rank."""
    parallel = arguments.parallel
    ranks = f"{arguments.world_size} rank{'s' if arguments.world_size > 1 else ''}"
    return (
        f"{ranks}: tensor {parallel.tensor_model_parallel_size} × pipeline {parallel.pipeline_model_parallel_size} × "
        f"data {arguments.data_parallel_size}{', sequence parallel' if parallel.sequence_parallel else ''}; "
        f"{parameters:,} parameters on rank 0"
    )
