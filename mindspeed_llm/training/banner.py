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

from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.console.text_tables import align_columns, key_value_table
from mindspeed_llm.devices.rendezvous import RankInfo, format_ranks, group_by_machine
from mindspeed_llm.training.resume_progress import batch_notice
from mindspeed_llm.training.run_setup import RunSetup


def format_banner(setup: RunSetup, parameters: int) -> str:
    """The whole table.

    Args:
        setup: of the run.
        parameters: of this rank.
    """
    arguments, datasets, derived, start = setup.arguments, setup.datasets, setup.derived, setup.start
    length, attention, batch_size = derived.length, derived.attention, derived.global_batch_size
    assert attention is not None
    data = (
        f"{len(datasets.train):,} {datasets.kind.name} to train on, {len(datasets.valid or ()):,} held out; "
        f"an epoch is {length.epoch_length / batch_size:.1f} iterations of "
        f"{batch_size}, the run {length.iterations:,} iterations"
    )
    batch = batch_notice(start, length.batch_sizes, arguments.training.global_batch(arguments.data_parallel_size))
    return key_value_table(
        [
            ("start", start.reason if batch is None else f"{start.reason}; {batch}"),
            ("machines", machine_lines(setup.every_rank)),
            ("layout", describe_layout(arguments.parallel, arguments.world_size, parameters)),
            ("versions", version_lines(setup.every_rank)),
            ("attention", f"{attention.kernel.name}: {attention.reason}"),
            ("operators", str(derived.operators)),
            ("data", data),
        ]
    )


def machine_lines(every: Sequence[RankInfo]) -> list[str]:
    """One line a machine: its name, its ranks, its devices."""
    hosts: dict[str, list[RankInfo]] = {}
    for one in every:
        hosts.setdefault(one.host, []).append(one)
    cells = []
    for host, facts in hosts.items():
        devices = Counter(one.device for one in facts)
        cells.append(
            (
                host,
                format_ranks(one.rank for one in facts),
                ", ".join(f"{count} × {device}" for device, count in devices.items()),
            )
        )
    return align_columns(cells, left=3)


def version_lines(every: Sequence[RankInfo]) -> list[str]:
    """The versions; where machines differ, a line for each kind, which is not forbidden but ought to be seen."""
    said = {one.rank: ", ".join(f"{name} {value}" for name, value in one.versions.items()) for one in every}
    kinds = group_by_machine(every, said)
    if len(kinds) == 1:
        return [kinds[0][1]]
    return ["DIFFERENT on the machines of this job:", *(f"{machines}: {kind}" for machines, kind in kinds)]


def describe_layout(parallel: ParallelArguments, world_size: int, parameters: int) -> str:
    """The layout, and the parameters of this rank."""
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    return (
        f"{ranks}: tensor {parallel.tensor_model_parallel_size} × pipeline {parallel.pipeline_model_parallel_size} × "
        f"data {parallel.data_parallel_size(world_size)}{', sequence parallel' if parallel.sequence_parallel else ''}; "
        f"{parameters:,} parameters on rank 0"
    )
