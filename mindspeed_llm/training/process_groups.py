"""Create and destroy the process groups of a run, and seed its ranks."""

from __future__ import annotations

import datetime

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.rendezvous import launcher_store
from mindspeed_llm.launcher_environment import read_launcher_environment

# Pipeline stages hold different layers and need different random numbers. The offset is that of Megatron.
_SEED_OFFSET_PER_STAGE = 100
# Data-parallel replicas have different samples and need different dropout. The offset exceeds all others: that of the
# stages, and that of megatron-core for tensor-parallel ranks, 2718 + rank.
_SEED_OFFSET_PER_REPLICA = 100_000


def init_distributed(arguments: PretrainArguments, device: Device) -> None:
    """Initialize torch.distributed, create the process groups and seed this rank. Collective.

    Under torchrun the environment gives rank and world size. Without torchrun the run has a single process.

    Args:
        arguments: checked arguments.
        device: device of this rank.
    """
    device.activate()
    timeout = datetime.timedelta(minutes=arguments.parallel.distributed_timeout_minutes)
    launch = read_launcher_environment()
    if launch.by_torchrun:
        # The ranks have met through this store before. Its keys are separate for each attempt of torchrun, so that a
        # restarted rank does not read the addresses of ranks that are gone.
        store = launcher_store()
        store.set_timeout(timeout)
        torch.distributed.init_process_group(
            device.backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
        )
    else:
        assert arguments.world_size == 1, "several ranks must be started by torchrun"
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(device.backend, store=store, rank=0, world_size=1, timeout=timeout)
    init_process_groups(arguments.parallel, arguments.virtual_stages, timeout)
    seed_ranks(arguments.training.seed)


def init_process_groups(
    parallel: ParallelArguments,
    virtual_stages: int | None = None,
    timeout: datetime.timedelta | None = None,
    gloo: bool = True,
) -> None:
    """Create the tensor-, pipeline- and data-parallel process groups of megatron-core. Collective.

    Args:
        parallel: sizes of the groups.
        virtual_stages: model chunks per pipeline rank with an interleaved pipeline, else None.
        timeout: timeout of every collective; None: 30 minutes.
        gloo: whether to create CPU groups beside those of the device. The fake groups of a dry run do not need them.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_stages,
        distributed_timeout_minutes=int(timeout.total_seconds() // 60) if timeout else 30,
        create_gloo_process_groups=gloo,
    )


def seed_ranks(seed: int) -> None:
    """Seed the random number generators of this rank for initialization and dropout.

    All replicas start with the weights of the first one (`wrap_chunks`), although each draws its own.

    Args:
        seed: --seed; the offsets for pipeline stage, replica and tensor-parallel rank are added here and in
            megatron-core.
    """
    seed += _SEED_OFFSET_PER_STAGE * parallel_state.get_pipeline_model_parallel_rank()
    seed += _SEED_OFFSET_PER_REPLICA * parallel_state.get_data_parallel_rank()
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def destroy_process_groups() -> None:
    """Destroy the process groups of megatron-core and torch.distributed, if there are any."""
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
