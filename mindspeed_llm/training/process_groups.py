"""Process groups: which ranks share a model, and the seeds that follow from it."""

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

# Ranks of one stage draw alike, other stages differently: Megatron's distance between their seeds.
_SEED_STEP_OF_A_STAGE = 100


def init_distributed(arguments: PretrainArguments, device: Device) -> None:
    """Start torch.distributed, lay out tensor, pipeline and data parallel groups, and seed. Collective.

    Under torchrun the environment says who this rank is; without it this is a job of one process.
    """
    device.activate()
    timeout = datetime.timedelta(minutes=arguments.parallel.distributed_timeout_minutes)
    launch = read_launcher_environment()
    if launch.by_torchrun:
        store = launcher_store()
        store.set_timeout(timeout)
        torch.distributed.init_process_group(
            device.backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
        )
    else:
        assert arguments.world_size == 1, "several ranks are started by torchrun"
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
    """Create megatron-core's groups over the ranks of torch.distributed. Collective.

    Args:
        parallel: sizes of the groups.
        virtual_stages: of each pipeline rank, where the pipeline is interleaved.
        timeout: of every collective.
        gloo: create CPU groups beside the device's; a dry run's fake groups want none.
    """
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_stages,
        distributed_timeout_minutes=int(timeout.total_seconds() // 60) if timeout else 30,
        create_gloo_process_groups=gloo,
    )


def seed_ranks(seed: int) -> None:
    """Seed this rank for initialisation and dropout, by its place in the layout."""
    seed += _SEED_STEP_OF_A_STAGE * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(seed)
    model_parallel_cuda_manual_seed(seed)


def destroy_process_groups() -> None:
    """Take the groups down again."""
    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
