"""Describe the tensors of a run (model, optimizer, RNG states) for megatron.core.dist_checkpointing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.utils import unwrap_model

from mindspeed_llm.adapters import AdapterRecord
from mindspeed_llm.tuning import is_adapter_parameter

ModelPart = Literal["all", "adapter", "base"]

# The default layout of the distributed optimizer's state fails on save (megatron-core 0.16.1); this one can be loaded
# on any layout. megatron-core adds entries to the dictionary that it gets, so each call gets a copy.
METADATA: Mapping[str, Any] = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
RNG_KEY = "rng_states"


@dataclass
class TrainingState:
    """Model and optimizer of this rank.

    Attributes:
        chunks: model chunks of this pipeline stage, with or without the wrappers of data parallelism and precision.
        optimizer: the optimizer; None if only the weights are needed.
        part: weights that are saved and loaded: all, those of the adapter, or those of its base model.
        adapter: content of adapter.json for checkpoints of an adapter.
    """

    chunks: list[torch.nn.Module]
    optimizer: MegatronOptimizer | None = None
    part: ModelPart = "all"
    adapter: AdapterRecord | None = None

    def finish_gathering(self) -> None:
        """Gather the updated weights now; with --overlap-param-gather the next forward pass would gather them."""
        for chunk in self.chunks:
            if isinstance(chunk, DistributedDataParallel) and chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    def bare_chunks(self) -> list[torch.nn.Module]:
        """Return the chunks without the wrappers of data parallelism and precision."""
        return list(unwrap_model(self.chunks))

    def contains(self, name: str) -> bool:
        """Return whether a weight belongs to `part`.

        Args:
            name: name in a chunk without wrappers.
        """
        return self.part == "all" or is_adapter_parameter(name) == (self.part == "adapter")


def sharded_weights(state: TrainingState) -> dict[str, Any]:
    """Return the sharded state dictionary of the model.

    Args:
        state: the model.

    Returns:
        One entry for each chunk, with Megatron's names: 'model' for a single chunk, otherwise 'model0', 'model1', …
    """
    chunks = state.bare_chunks()
    names = ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]
    return {
        name: _tensors(chunk.sharded_state_dict(metadata=dict(METADATA)), state)  # type: ignore[operator]
        for name, chunk in zip(names, chunks, strict=True)
    }


def _tensors(entries: dict[str, Any], state: TrainingState) -> dict[str, Any]:
    """Return the tensors of the part; each linear layer of megatron-core also has an empty pickled object."""
    return {
        name: entry for name, entry in entries.items() if not isinstance(entry, ShardedObject) and state.contains(name)
    }


def load_chunk_weights(chunk: torch.nn.Module, values: dict[str, Any], state: TrainingState) -> None:
    """Load the weights of one chunk; every weight of the part must be present, and no other.

    Args:
        chunk: the chunk, without wrappers.
        values: name → tensor, as one entry of the loaded `sharded_weights`. Each tensor has the shape [...] of the
            parameter.
        state: the model to which the chunk belongs.
    """
    wrong = chunk.load_state_dict(values, strict=False)
    # The pickled objects are not loaded.
    missing = [name for name in wrong.missing_keys if state.contains(name) and not name.endswith("_extra_state")]
    assert not missing and not wrong.unexpected_keys, (missing, wrong.unexpected_keys)


def sharded_optimizer(state: TrainingState, weights: dict[str, Any], is_loading: bool) -> dict[str, Any]:
    """Return the sharded state dictionary of the optimizer.

    Args:
        state: model and optimizer.
        weights: from `sharded_weights`, which give the names and the sharding of the parameters.
        is_loading: whether it will be loaded into, and not saved.
    """
    assert state.optimizer is not None
    # Before the first update an optimizer has no state: nothing could be loaded into it, and the distributed optimizer
    # could not be saved. With fp16 the first dozens of steps may overflow, so a run can be saved before any update.
    for member in getattr(state.optimizer, "chained_optimizers", [state.optimizer]):
        member.init_state_fn(member.optimizer, member.config)
    model_weights = weights.get("model", weights)
    return {
        "optimizer": state.optimizer.sharded_state_dict(model_weights, is_loading=is_loading, metadata=dict(METADATA))
    }


def get_rng_state() -> torch.Tensor:
    """Return the RNG states of this rank: of the CPU, of the device, and of megatron-core's tracker by name.

    Returns:
        Tensor [bytes] of uint8 on the CPU.
    """
    parts = [torch.get_rng_state(), torch.cuda.get_rng_state(), *(state for _, state in _tracked_states())]
    return torch.cat([part.flatten().to(torch.uint8).cpu() for part in parts])


def set_rng_state(row: torch.Tensor) -> None:
    """Restore the RNG states of this rank.

    Args:
        row: tensor [bytes] of uint8, from `get_rng_state` on a rank with the same device and the same tracked states.
    """
    # The current states have the sizes of the parts: a row does not contain them.
    tracked = _tracked_states()
    states = [torch.get_rng_state(), torch.cuda.get_rng_state(), *(state for _, state in tracked)]
    parts = row.cpu().split([state.numel() for state in states])
    torch.set_rng_state(parts[0].clone())
    torch.cuda.set_rng_state(parts[1].clone())
    get_cuda_rng_tracker().set_states({name: part.clone() for (name, _), part in zip(tracked, parts[2:], strict=True)})


def sharded_rng_state(row: torch.Tensor) -> dict[str, Any]:
    """Return the sharded state dictionary of the RNG states.

    Args:
        row: tensor [bytes] of uint8 with the states of this rank.

    Returns:
        One entry: this rank's row of a tensor [world size, bytes].
    """
    # A tensor, and not a pickled object as in Megatron-LM, so that loading runs no code.
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return {RNG_KEY: ShardedTensor.from_rank_offsets(RNG_KEY, row[None, :], (0, rank, world))}


def _tracked_states() -> list[tuple[str, torch.Tensor]]:
    """Return name and state of each generator of megatron-core's tracker, in the order of the names."""
    return sorted(get_cuda_rng_tracker().get_states().items())
