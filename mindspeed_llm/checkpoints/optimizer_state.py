"""Loading the optimizer's state, after a check that it was saved correctly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from mindspeed_llm.errors import CheckpointError

# The entries of a parameter group that are state of the run; the flags give all others.
_STATE_OF_A_GROUP = frozenset({"params", "step"})
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Load moments, main weights, loss scale and number of updates.

    A checkpoint also holds the hyperparameters of each parameter group (max_lr, min_lr, betas, eps, weight decay). They
    stay those of the flags, so that a run can be resumed with another --lr.
    """
    flags = [
        {key: value for key, value in group.items() if key not in _STATE_OF_A_GROUP} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(loaded)
    for group, own in zip(optimizer.param_groups, flags, strict=True):
        group.update(own)


def check_main_weights(folder: Path, optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Check that the distributed optimizer's copies of the weights equal the weights of the checkpoint. Collective.

    In a correct checkpoint they do, up to the rounding of the weights. Before devices/bucket_padding.py corrected it,
    megatron-core saved a wrong state if there were several buckets with padding between them: the right weights, but
    for the optimizer the state of other parameters. Copies and moments were read at the same offsets, so this
    comparison finds every such checkpoint, whatever the layout that wrote it, and no other.

    Args:
        folder: the checkpoint, for the message.
        optimizer: over a model that has the checkpoint's weights.
        loaded: the optimizer's part of the checkpoint, as this rank has read it.

    Raises:
        CheckpointError: they differ on any rank; raised on every rank.
    """
    pairs = _weights_and_copies(optimizer, loaded)
    differing = torch.tensor([float(any(not _equal_when_rounded(weight, copy) for weight, copy in pairs))])
    torch.distributed.all_reduce(differing)
    if differing:
        raise CheckpointError(
            f"{folder}: its optimizer state does not belong to its weights. Earlier versions of this program saved it "
            "wrongly if the gradient had several buckets, as with --use-distributed-optimizer and "
            "--overlap-grad-reduce, or with tied weights over pipeline stages. The weights are right: start from them "
            f"with --load {folder.parent} --finetune and another --save (--no-load-optim instead of --finetune keeps "
            "iteration, data and schedule)"
        )


def _weights_and_copies(
    optimizer: MegatronOptimizer, loaded: dict[Any, Any]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each weight of this rank with the optimizer's float32 copy in the checkpoint; both have the same shape."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    parts = [loaded] if len(chained) == 1 else [loaded[number] for number in range(len(chained))]
    for one, part in zip(chained, parts, strict=True):
        if not isinstance(one, DistributedOptimizer):
            continue  # megatron-core saves the state of other optimizers parameter by parameter
        parameters = [parameter for buffer in one.buffers for parameter in buffer.param_index_map]
        for number, parameter in enumerate(parameters):
            yield parameter.detach(), part["param_state"][number]["param"]


def _equal_when_rounded(weight: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether a float32 copy, rounded to the precision of the run that saved both, is the weight.

    That run may have had another precision than this one.
    """
    copy = copy.to(weight.device)
    return any(torch.equal(copy.to(saved).to(weight.dtype), weight) for saved in (weight.dtype, *_PRECISIONS))
