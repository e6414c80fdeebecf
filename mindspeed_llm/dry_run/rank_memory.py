"""Build every rank of a job in one process, one after another, and estimate its memory.

A fake process group and the meta device of PyTorch stand for the cluster. Importing this module imports megatron.core,
so `apply_patches("meta")` must be called before.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches
from megatron.core.transformer.module import param_is_not_shared
from megatron.core.utils import get_attr_wrapped_model

from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import Device
from mindspeed_llm.dry_run.activation_memory import ActivationMemory, PipelineStage, SavedByOps
from mindspeed_llm.model import PackedBoundaries, TrainedSlots, VirtualSlots
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer, setup_model_and_optimizer
from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks

META = torch.device("meta")

# Up to this number every rank is built; of larger jobs, one rank of each kind.
MAX_RANKS = 64
TRACED_SLOTS = 16


@dataclass(frozen=True)
class RankMemory:
    """Memory of one rank. Sizes are in bytes.

    Attributes:
        rank: number of the rank.
        rank_count: number of ranks with the same memory, including this one.
        tensor: tensor-parallel rank.
        pipeline: pipeline-parallel rank.
        data: data-parallel rank.
        layers: number of transformer layers of each model chunk.
        parameters: number of parameters on this rank.
        stage_parameters: number of parameters on all tensor-parallel ranks of the stage, each counted once.
        stage_trained: number of those that are trained; fewer with an adapter.
        weights: size of the weights.
        gradients: size of the gradient buffers.
        optimizer: size of the optimizer state: main (float32) weights, if the model has another data type, and both
            moments of Adam.
        activations: estimated peak of the activations.
    """

    rank: int
    rank_count: int
    tensor: int
    pipeline: int
    data: int
    layers: tuple[int, ...]
    parameters: int
    stage_parameters: int
    stage_trained: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of all sizes in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_rank_memory(
    arguments: PretrainArguments,
    derived: DerivedSettings,
    operators: SavedByOps,
    trained_share: float = 1.0,
    *,
    every_rank: bool = True,
) -> list[RankMemory]:
    """Build each rank (of a large job: each kind of rank) and trace one micro-batch through every pipeline stage.

    Args:
        arguments: checked arguments.
        derived: settings of the run, on the meta device.
        operators: fused operators of the device that the job will train on, for the activations.
        trained_share: trained tokens ÷ tokens, for the memory of the loss.
        every_rank: False to build one rank of each kind and to trace nothing, which is faster.

    Raises:
        ConfigError: the warm-up of the schedule is not shorter than its decay.
    """
    plans = []
    traced: set[int] = set()
    estimate = ActivationMemory(arguments, derived.vocabulary.padded, operators, derived.loss.chunk_size, trained_share)
    for rank, rank_count in ranks_to_build(
        arguments.parallel, arguments.world_size, MAX_RANKS if every_rank else 1
    ).items():
        with simulated_rank(arguments, rank):
            # As the default device, because some tensors are created on the CPU and moved later.
            with META:
                model_and_optimizer = setup_model_and_optimizer(arguments, Device("meta"), derived)
            plans.append(_estimate_rank(model_and_optimizer, estimate, arguments.micro_batches, rank, rank_count))
            # Ranks of one stage have the same shapes, so one trace per stage is enough.
            if every_rank and plans[-1].pipeline not in traced:
                traced.add(plans[-1].pipeline)
                trace_micro_batch(model_and_optimizer, arguments.data.seq_length, arguments.training.micro_batch_size)
    return plans


def ranks_to_build(parallel: ParallelArguments, world_size: int, limit: int = MAX_RANKS) -> dict[int, int]:
    """Choose the ranks to build.

    Args:
        parallel: sizes of the process groups.
        world_size: number of ranks of the job.
        limit: largest number of ranks of which every one is built.

    Returns:
        Rank → number of ranks that it represents, including itself.
    """
    tensor, copies = parallel.tensor_model_parallel_size, parallel.data_parallel_size(world_size)
    if world_size <= limit:
        return dict.fromkeys(range(world_size), 1)
    # megatron-core numbers tensor-parallel ranks first, then data, then pipeline. Tensor ranks of a stage have the same
    # shapes, and so have its data-parallel replicas, except for the padding in the last shard of a distributed
    # optimizer.
    ranks = {}
    for stage in range(parallel.pipeline_model_parallel_size):
        first = stage * copies * tensor
        if parallel.use_distributed_optimizer and copies > 1:
            ranks[first] = (copies - 1) * tensor
            ranks[first + (copies - 1) * tensor] = tensor
        else:
            ranks[first] = copies * tensor
    return ranks


@contextlib.contextmanager
def simulated_rank(arguments: PretrainArguments, rank: int) -> Iterator[None]:
    """Make this process one rank of the job inside the block: process groups and RNG seeds.

    Args:
        arguments: checked arguments.
        rank: number of the rank.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=arguments.world_size)
    try:
        init_process_groups(arguments.parallel, arguments.virtual_stages, gloo=False)
        seed_ranks(arguments.training.seed)
        with warnings.catch_warnings():
            # megatron-core calls collectives by names that PyTorch has deprecated; the user can do nothing about it.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        destroy_process_groups()


def _estimate_rank(
    model_and_optimizer: ModelAndOptimizer, estimate: ActivationMemory, micro_batches: int, rank: int, rank_count: int
) -> RankMemory:
    """Measure the rank that is built, and estimate its activations."""
    parameters = [parameter for chunk in model_and_optimizer.chunks for parameter in chunk.parameters()]
    buffers: list[Any] = [buffer for chunk in model_and_optimizer.chunks for buffer in chunk.buffers]  # type: ignore[attr-defined]
    stage = _stage(model_and_optimizer, micro_batches)
    return RankMemory(
        rank=rank,
        rank_count=rank_count,
        tensor=parallel_state.get_tensor_model_parallel_rank(),
        pipeline=parallel_state.get_pipeline_model_parallel_rank(),
        data=parallel_state.get_data_parallel_rank(),
        layers=stage.layers,
        parameters=sum(parameter.numel() for parameter in parameters),
        stage_parameters=sum(_stage_numel(parameter) for parameter in parameters),
        stage_trained=sum(_stage_numel(parameter) for parameter in parameters if parameter.requires_grad),
        weights=_size(parameters),
        gradients=_size([buffer.grad_data for buffer in buffers]),
        optimizer=_optimizer_size(model_and_optimizer),
        activations=estimate.peak(stage),
    )


def _stage_numel(parameter: torch.nn.Parameter) -> int:
    """Return the size of a parameter over all tensor-parallel ranks of the stage."""
    # The copy of a tied embedding on the last stage counts on the first stage.
    if not param_is_not_shared(parameter):
        return 0
    # Norms and some biases are the same on all tensor-parallel ranks and count once.
    divided = getattr(parameter, "tensor_model_parallel", False)
    return parameter.numel() * (parallel_state.get_tensor_model_parallel_world_size() if divided else 1)


def _size(tensors: list[torch.Tensor] | list[torch.nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_size(model_and_optimizer: ModelAndOptimizer) -> int:
    """Return the size of the optimizer state in bytes."""
    # Adam has two moments per updated weight. It creates them in the first step, so they cannot be measured here. The
    # updated weights are float32 copies if the model has another data type, otherwise the weights of the model.
    updated = [parameter for group in model_and_optimizer.optimizer.param_groups for parameter in group["params"]]
    copies = [parameter for parameter in updated if parameter.dtype != model_and_optimizer.config.params_dtype]
    return 2 * _size(updated) + _size(copies)


def _stage(model_and_optimizer: ModelAndOptimizer, micro_batches: int) -> PipelineStage:
    """Describe the pipeline stage of the rank that is built."""
    # megatron-core itself counts the forward passes before the first backward pass, so the plan follows its schedule.
    total, _, before_first_backward, _ = get_pp_rank_microbatches(
        micro_batches, len(model_and_optimizer.chunks), model_and_optimizer.config.microbatch_group_size_per_vp_stage
    )
    return PipelineStage(
        layers=tuple(len(get_attr_wrapped_model(chunk, "decoder").layers) for chunk in model_and_optimizer.chunks),
        # The forward pass right before the first backward pass counts as well.
        in_flight=min(before_first_backward + 1, total),
        first=parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        last=parallel_state.is_pipeline_last_stage(ignore_virtual=True),
    )


def trace_micro_batch(model_and_optimizer: ModelAndOptimizer, seq_length: int, micro_batch_size: int) -> None:
    """Run one micro-batch forward and backward through each chunk of this rank, to prove that the shapes fit together.

    Args:
        model_and_optimizer: model of this rank, on the meta device.
        seq_length: slots of a pack.
        micro_batch_size: packs of a micro-batch.
    """
    config, adapter = model_and_optimizer.config, model_and_optimizer.adapter
    virtual_tokens = 0 if adapter is None else adapter.virtual_tokens
    slots = seq_length * micro_batch_size
    ids = torch.zeros(1, slots, dtype=torch.int64, device=META)
    positions = torch.zeros(slots, dtype=torch.int64, device=META)
    ends = tuple(range(seq_length, slots + 1, seq_length))
    # A few trained slots are enough for the shapes of the loss.
    trained = TrainedSlots(np.arange(min(slots, TRACED_SLOTS)), ids, ids.float())
    rows = slots // (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    for chunk in model_and_optimizer.chunks:
        if not get_attr_wrapped_model(chunk, "pre_process"):
            shape = (rows, 1, config.hidden_size)
            # The shape that the schedules of megatron-core receive from the previous stage.
            received = torch.zeros(shape, dtype=config.pipeline_dtype, device=META)
            get_attr_wrapped_model(chunk, "set_input_tensor")(received.requires_grad_())
        # These hooks would start all-gathers of the parameters, which the trace does not need.
        if chunk.ddp_config.overlap_param_gather:  # type: ignore[union-attr]
            chunk.disable_forward_pre_hook(param_sync=False)  # type: ignore[operator]
        virtual = VirtualSlots(np.arange(virtual_tokens), META) if virtual_tokens else None
        boundaries = PackedBoundaries(actual_seq_len=ends, positions=positions, virtual_slots=virtual)
        # Gradients are not reduced: PyTorch has no coalesced collectives on the meta device.
        with chunk.no_sync():  # type: ignore[operator]
            output = chunk(ids, positions[None, :], None, labels=trained, packed_seq_params=boundaries)
            is_loss = get_attr_wrapped_model(chunk, "post_process")
            output, expected = (output[0], ()) if is_loss else (output, (rows, 1, config.hidden_size))
            assert tuple(output.shape) == expected, f"a stage returns {tuple(output.shape)}, not {expected}"
            output.sum().backward()
