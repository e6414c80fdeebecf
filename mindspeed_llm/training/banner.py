"""Format the table that a run prints at each start: machines, layout, versions, attention, operators and data.

Example of the table:

    start      resuming from checkpoints/iter_0000400, iteration 400
    machines   node-a  ranks 0–7   8 × npu Ascend910B3 (hccl)
               node-b  ranks 8–15  8 × npu Ascend910B3 (hccl)
    layout     16 ranks: tensor 4 × pipeline 2 × data 2, sequence parallel; 952,320 parameters on rank 0
    flags      command line: --data-path --lr --save …
               run.yaml: --micro-batch-size 2 …
    versions   mindspeed_llm 0.1.0, torch 2.13.0, megatron-core 0.16.1, torch_npu 2.13.0, CANN 9.0.0
    attention  npu_fusion_attention: it supports torch.bfloat16 on npu
    operators  fused: npu_rms_norm, npu_swiglu, npu_rotary_mul, torch._fused_adamw_
    loss       chunks of 512 trained slots: 38.2 % of the tokens are trained
    data       10,240 neat packs to train on, 0 held out; an epoch is 1,280.0 iterations of 8, the run 2,000 iterations
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.console.text_tables import align_columns, key_value_table
from mindspeed_llm.data import BlockDataset
from mindspeed_llm.devices.rendezvous import RankInfo, format_ranks, group_by_machine
from mindspeed_llm.training.resume_progress import batch_notice
from mindspeed_llm.training.run_setup import RunSetup


def format_banner(setup: RunSetup, parameters: int, trained: int) -> str:
    """Format the start table of a run.

    Args:
        setup: the run.
        parameters: number of parameters on this rank.
        trained: number of those that are trained.

    Returns:
        The table, one line per row, without a line break at the end.
    """
    arguments, datasets, derived, start = setup.arguments, setup.datasets, setup.derived, setup.start
    length, attention, batch_size = derived.length, derived.attention, derived.global_batch_size
    assert attention is not None
    data = (
        f"{len(datasets.train):,} {datasets.kind.name} to train on, {len(datasets.valid or ()):,} held out; "
        f"an epoch is {length.epoch_length / batch_size:.1f} iterations of "
        f"{batch_size}, the run {length.iterations:,} iterations"
    )
    if isinstance(datasets.train, BlockDataset):
        data += f"; {datasets.train.unused_tokens:,} tokens at the end of each epoch are less than a block, and unused"
    batch = batch_notice(
        start, length.batch_sizes, arguments.training.default_global_batch_size(arguments.data_parallel_size)
    )
    return key_value_table(
        [
            ("start", start.reason if batch is None else f"{start.reason}; {batch}"),
            ("machines", machine_lines(setup.every_rank)),
            ("flags", arguments.describe_sources()),
            ("layout", describe_layout(arguments.parallel, arguments.world_size, parameters, trained)),
            ("versions", version_lines(setup.every_rank)),
            ("attention", f"{attention.kernel.name}: {attention.reason}"),
            ("operators", str(derived.operators)),
            ("loss", str(derived.loss)),
            ("data", data),
        ]
    )


def machine_lines(every_rank: Sequence[RankInfo]) -> list[str]:
    """Return one line per machine with its name, ranks and devices."""
    hosts: dict[str, list[RankInfo]] = {}
    for info in every_rank:
        hosts.setdefault(info.host, []).append(info)
    cells = []
    for host, infos in hosts.items():
        devices = Counter(info.device for info in infos)
        cells.append(
            (
                host,
                format_ranks(info.rank for info in infos),
                ", ".join(f"{count} × {device}" for device, count in devices.items()),
            )
        )
    return align_columns(cells, left=3)


def version_lines(every_rank: Sequence[RankInfo]) -> list[str]:
    """Return the library versions in one line, or one line per group of machines if they differ."""
    versions = {info.rank: ", ".join(f"{name} {value}" for name, value in info.versions.items()) for info in every_rank}
    groups = group_by_machine(every_rank, versions)
    if len(groups) == 1:
        return [groups[0][1]]
    # Machines may have different versions, but the user should see it.
    return ["DIFFERENT on the machines of this job:", *(f"{machines}: {text}" for machines, text in groups)]


def describe_layout(parallel: ParallelArguments, world_size: int, parameters: int, trained: int) -> str:
    """Describe the parallel layout and the size of the model in one line.

    Args:
        parallel: sizes of the process groups.
        world_size: number of ranks.
        parameters: number of parameters on this rank.
        trained: number of those that are trained.
    """
    share = f", of which {trained:,} are trained" if trained < parameters else ""
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    return (
        f"{ranks}: tensor {parallel.tensor_model_parallel_size} × pipeline {parallel.pipeline_model_parallel_size} × "
        f"data {parallel.data_parallel_size(world_size)}{', sequence parallel' if parallel.sequence_parallel else ''}; "
        f"{parameters:,} parameters on rank 0{share}"
    )
