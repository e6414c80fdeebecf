"""Every rank of a job, one after another, in one process: a fake process group and torch's meta device.

Importing this module imports megatron.core; `apply_patches("meta")` comes first.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches
from megatron.core.transformer.module import param_is_not_shared
from megatron.core.utils import get_attr_wrapped_model

from mindspeed_llm.arguments.parallel_arguments import ParallelArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.devices import Device
from mindspeed_llm.dry_run.activation_memory import ActivationMemory, PipelineStage, SavedByOps
from mindspeed_llm.model import PackedBoundaries
from mindspeed_llm.training.derived_settings import DerivedSettings
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer, setup_model_and_optimizer
from mindspeed_llm.training.process_groups import destroy_process_groups, init_process_groups, seed_ranks

META = torch.device("meta")

# Up to this many ranks each is built; of larger jobs, each kind of rank.
MOST_RANKS = 64


@dataclass(frozen=True)
class RankMemory:
    """What one rank holds. Sizes in bytes.

    Attributes:
        rank: its number; stands_for: ranks that hold the same, itself included.
        tensor, pipeline, data: its place in the layout.
        layers: transformer layers of each of its chunks.
        parameters: on this rank; stage_parameters: on all tensor ranks of its stage, each once.
        optimizer: float32 weights where the model's are others, and both averages of Adam.
    """

    rank: int
    stands_for: int
    tensor: int
    pipeline: int
    data: int
    layers: tuple[int, ...]
    parameters: int
    stage_parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_rank_memory(
    arguments: PretrainArguments, derived: DerivedSettings, operators: SavedByOps
) -> list[RankMemory]:
    """Build the job of each rank (of a large job: of each kind of rank), and run one micro-batch through every stage.

    Args:
        arguments: checked arguments.
        derived: of the run, on the meta device.
        operators: of the device that is to be trained on, for the activations.

    Raises:
        ConfigError: the schedule does not fit.
    """
    plans = []
    passed: set[int] = set()
    estimate = ActivationMemory(arguments, derived.vocabulary.padded, operators)
    for rank, stands_for in ranks_to_build(arguments.parallel, arguments.world_size).items():
        with simulated_rank(arguments, rank):
            # Every tensor on the meta device, those too that otherwise begin on the CPU and are moved.
            with META:
                model_and_optimizer = setup_model_and_optimizer(arguments, Device("meta"), derived)
            plans.append(_rank_plan(model_and_optimizer, estimate, arguments.micro_batches, rank, stands_for))
            if plans[-1].pipeline not in passed:
                passed.add(plans[-1].pipeline)
                trace_micro_batch(model_and_optimizer, arguments.data.seq_length, arguments.training.micro_batch_size)
    return plans


def ranks_to_build(parallel: ParallelArguments, world_size: int) -> dict[int, int]:
    """Ranks to build, and how many each stands for.

    megatron-core numbers tensor ranks first, then data, then pipeline. Tensor ranks of a stage have the same shapes,
    and so have its data-parallel copies, but for the padding in the last shard of a distributed optimizer.
    """
    tensor, copies = parallel.tensor_model_parallel_size, parallel.data_parallel_size(world_size)
    if world_size <= MOST_RANKS:
        return dict.fromkeys(range(world_size), 1)
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
    """This process as one rank of the job: its groups and its random state."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=arguments.world_size)
    try:
        init_process_groups(arguments.parallel, arguments.virtual_stages, gloo=False)
        seed_ranks(arguments.training.seed)
        with warnings.catch_warnings():
            # megatron-core calls collectives by names that newer versions of torch will drop.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        destroy_process_groups()


def _rank_plan(
    model_and_optimizer: ModelAndOptimizer, estimate: ActivationMemory, micro_batches: int, rank: int, stands_for: int
) -> RankMemory:
    parameters = [parameter for chunk in model_and_optimizer.chunks for parameter in chunk.parameters()]
    buffers: list[Any] = [buffer for chunk in model_and_optimizer.chunks for buffer in chunk.buffers]  # type: ignore[attr-defined]
    stage = _stage(model_and_optimizer, micro_batches)
    return RankMemory(
        rank=rank,
        stands_for=stands_for,
        tensor=parallel_state.get_tensor_model_parallel_rank(),
        pipeline=parallel_state.get_pipeline_model_parallel_rank(),
        data=parallel_state.get_data_parallel_rank(),
        layers=stage.layers,
        parameters=sum(parameter.numel() for parameter in parameters),
        stage_parameters=sum(_stage_numel(parameter) for parameter in parameters),
        weights=_size(parameters),
        gradients=_size([buffer.grad_data for buffer in buffers]),
        optimizer=_optimizer_size(model_and_optimizer),
        activations=estimate.peak(stage),
    )


def _stage_numel(parameter: torch.nn.Parameter) -> int:
    """Of all tensor ranks. Norms and some biases are the same on all; the tied embedding's copy on the last stage is
    the first stage's."""
    if not param_is_not_shared(parameter):
        return 0
    divided = getattr(parameter, "tensor_model_parallel", False)
    return parameter.numel() * (parallel_state.get_tensor_model_parallel_world_size() if divided else 1)


def _size(tensors: list[torch.Tensor] | list[torch.nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _optimizer_size(model_and_optimizer: ModelAndOptimizer) -> int:
    """Adam has two averages of each weight that it updates. Those weights are float32 copies where the model's are
    not float32, otherwise the model's own. (The averages are made at the first step, so there are none to measure.)"""
    updated = [parameter for group in model_and_optimizer.optimizer.param_groups for parameter in group["params"]]
    copies = [parameter for parameter in updated if parameter.dtype != model_and_optimizer.config.params_dtype]
    return 2 * _size(updated) + _size(copies)


def _stage(model_and_optimizer: ModelAndOptimizer, micro_batches: int) -> PipelineStage:
    """From the model as built and megatron-core's own count of the passes that precede the first backward pass."""
    total, _, before_first_backward, _ = get_pp_rank_microbatches(
        micro_batches, len(model_and_optimizer.chunks), model_and_optimizer.config.microbatch_group_size_per_vp_stage
    )
    return PipelineStage(
        layers=tuple(len(get_attr_wrapped_model(chunk, "decoder").layers) for chunk in model_and_optimizer.chunks),
        in_flight=min(before_first_backward + 1, total),
        first=parallel_state.is_pipeline_first_stage(ignore_virtual=True),
        last=parallel_state.is_pipeline_last_stage(ignore_virtual=True),
    )


def trace_micro_batch(model_and_optimizer: ModelAndOptimizer, seq_length: int, micro_batch_size: int) -> None:
    """Forward and backward of one micro-batch through each chunk of this rank, to prove that the shapes fit together.

    What a stage receives from the one before is a tensor of the shape that megatron-core's schedules receive. The
    gradients stay here: torch has no coalesced collectives on the meta device.
    """
    config = model_and_optimizer.config
    slots = seq_length * micro_batch_size
    ids = torch.zeros(1, slots, dtype=torch.int64, device=META)
    positions = torch.zeros(slots, dtype=torch.int64, device=META)
    ends = tuple(range(seq_length, slots + 1, seq_length))
    rows = slots // (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    for chunk in model_and_optimizer.chunks:
        if not get_attr_wrapped_model(chunk, "pre_process"):
            shape = (rows, 1, config.hidden_size)
            received = torch.zeros(shape, dtype=config.pipeline_dtype, device=META)
            get_attr_wrapped_model(chunk, "set_input_tensor")(received.requires_grad_())
        if chunk.ddp_config.overlap_param_gather:  # type: ignore[union-attr]
            chunk.disable_forward_pre_hook(param_sync=False)  # type: ignore[operator]
        boundaries = PackedBoundaries(actual_seq_len=ends, positions=positions)
        with chunk.no_sync():  # type: ignore[operator]
            output = chunk(ids, positions[None, :], None, labels=ids, packed_seq_params=boundaries)
            is_loss = get_attr_wrapped_model(chunk, "post_process")
            expected = (1, slots) if is_loss else (rows, 1, config.hidden_size)
            assert tuple(output.shape) == expected, f"a stage gives {tuple(output.shape)}, not {expected}"
            output.sum().backward()
