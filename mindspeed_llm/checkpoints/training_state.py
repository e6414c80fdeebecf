"""The parts of a run that a checkpoint holds, and their description for megatron.core.dist_checkpointing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model

# The default layout of the distributed optimizer's state fails on save (megatron-core 0.16.1); this one can be loaded
# on any layout. megatron-core adds to the dictionary it is given, so each call gets its own.
METADATA: Mapping[str, Any] = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
RNG_KEY = "rng_states"


@dataclass
class TrainingState:
    """Model and optimizer of this rank.

    Attributes:
        chunks: model chunks of this pipeline stage, wrapped for data parallelism or bare.
        optimizer: None where only weights matter.
    """

    chunks: list[torch.nn.Module]
    optimizer: MegatronOptimizer | None = None

    def finish_gathering(self) -> None:
        """Bring the weights up to date: with --overlap-param-gather they are gathered in the next forward only."""
        for chunk in self.chunks:
            if isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    def bare_chunks(self) -> list[torch.nn.Module]:
        """The chunks without wrappers of data parallelism and precision."""
        return list(unwrap_model(self.chunks))


def sharded_weights(state: TrainingState) -> dict[str, Any]:
    """Sharded state dictionary of the model; one entry for each chunk, named as Megatron names them."""
    chunks = state.bare_chunks()
    names = ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]
    return {
        name: _tensors(chunk.sharded_state_dict(metadata=dict(METADATA)))  # type: ignore[operator]
        for name, chunk in zip(names, chunks, strict=True)
    }


def _tensors(entries: dict[str, Any]) -> dict[str, Any]:
    """Without the entries of pickled bytes: megatron-core's linear layers have an empty one each."""
    return {name: entry for name, entry in entries.items() if not isinstance(entry, ShardedObject)}


def load_chunk_weights(chunk: torch.nn.Module, values: dict[str, Any]) -> None:
    """Load what `sharded_weights` described; every weight must be there, and nothing else."""
    empty = {name: None for name in chunk.state_dict() if name.endswith("_extra_state")}
    chunk.load_state_dict({**empty, **values}, strict=True)


def sharded_optimizer(state: TrainingState, weights: dict[str, Any], is_loading: bool) -> dict[str, Any]:
    """Sharded state dictionary of the optimizer, over that of the model."""
    assert state.optimizer is not None
    for one in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        one.init_state_fn(one.optimizer, one.config)  # before the first update there is none, and none could be loaded
    model_weights = weights.get("model", weights)
    return {
        "optimizer": state.optimizer.sharded_state_dict(model_weights, is_loading=is_loading, metadata=dict(METADATA))
    }


def get_rng_state() -> torch.Tensor:
    """Random states of this rank in one row of bytes: the CPU's, the device's, and the tracker's by name."""
    parts = [torch.get_rng_state(), torch.cuda.get_rng_state(), *(state for _, state in _tracked_states())]
    return torch.cat([part.flatten().to(torch.uint8).cpu() for part in parts])


def set_rng_state(row: torch.Tensor) -> None:
    """Undo `get_rng_state`."""
    tracked = _tracked_states()
    states = [torch.get_rng_state(), torch.cuda.get_rng_state(), *(state for _, state in tracked)]
    parts = row.cpu().split([state.numel() for state in states])
    torch.set_rng_state(parts[0].clone())
    torch.cuda.set_rng_state(parts[1].clone())
    get_cuda_rng_tracker().set_states({name: part.clone() for (name, _), part in zip(tracked, parts[2:], strict=True)})


def sharded_rng_state(row: torch.Tensor) -> dict[str, Any]:
    """Row `rank` of a [world size, bytes] tensor: plain bytes, so that loading them runs no code."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {RNG_KEY: ShardedTensor.from_rank_offsets(RNG_KEY, row[None, :], (0, rank, world))}


def _tracked_states() -> list[tuple[str, torch.Tensor]]:
    return sorted(get_cuda_rng_tracker().get_states().items())
