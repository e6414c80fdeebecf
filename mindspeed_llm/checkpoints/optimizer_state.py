"""Load the optimizer state of a checkpoint, and check that it was saved correctly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from mindspeed_llm.errors import CheckpointError

# The entries of a parameter group that are part of the state of the run. All other entries come from the flags.
_STATE_OF_A_GROUP = frozenset({"params", "step"})
_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def load_optimizer(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Load moments, main weights (float32), loss scale and number of updates.

    A checkpoint also contains the hyperparameters of each parameter group (max_lr, min_lr, betas, eps, weight decay).
    They are not loaded: the values of the flags apply, so that a run can be resumed with another --lr.

    Args:
        optimizer: the optimizer to load into.
        loaded: the optimizer's part of the checkpoint, as this rank has loaded it.
    """
    flags = [
        {key: value for key, value in group.items() if key not in _STATE_OF_A_GROUP} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(loaded)
    # megatron-core has overwritten the hyperparameters with those of the checkpoint.
    for group, own in zip(optimizer.param_groups, flags, strict=True):
        group.update(own)


def check_main_weights(folder: Path, optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Check that the distributed optimizer's main weights (float32) equal the weights of the checkpoint. Collective.

    In a correct checkpoint they are equal, up to the rounding of the weights. Without the correction in
    devices/bucket_padding.py, megatron-core saves a wrong state if several buckets have padding between them: the
    weights are correct, but the optimizer gets the state of other parameters. It reads main weights and moments at the
    same wrong offsets, so a comparison of the main weights detects such a checkpoint, whatever layout wrote it, and
    accepts all others.

    Args:
        folder: directory of the checkpoint, for the message.
        optimizer: optimizer of a model into which the weights of the checkpoint were loaded.
        loaded: the optimizer's part of the checkpoint, as this rank has loaded it.

    Raises:
        CheckpointError: They differ on any rank. Raised on every rank.
    """
    pairs = _weights_and_copies(optimizer, loaded)
    differing = torch.tensor([float(any(not _equal_when_rounded(weight, copy) for weight, copy in pairs))])
    # All ranks must agree: a rank that raised alone would leave the others waiting in their next collective.
    torch.distributed.all_reduce(differing)
    if differing:
        raise CheckpointError(
            f"{folder}: its optimizer state does not belong to its weights. Earlier versions of this program saved it "
            "incorrectly if the gradient had several buckets, as with --use-distributed-optimizer and "
            "--overlap-grad-reduce, or with tied weights over pipeline stages. The weights are correct: start from "
            f"them with --load {folder.parent} --finetune and another --save (--no-load-optim instead of --finetune "
            "keeps iteration, data and schedule)"
        )


def _weights_and_copies(
    optimizer: MegatronOptimizer, loaded: dict[Any, Any]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each weight of this rank with its main weight (float32) in the checkpoint; both have the same shape."""
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    parts = [loaded] if len(chained) == 1 else [loaded[number] for number in range(len(chained))]
    for member, part in zip(chained, parts, strict=True):
        if not isinstance(member, DistributedOptimizer):
            # megatron-core saves the state of other optimizers parameter by parameter, without offsets into a buffer.
            continue
        parameters = [parameter for buffer in member.buffers for parameter in buffer.param_index_map]
        for number, parameter in enumerate(parameters):
            yield parameter.detach(), part["param_state"][number]["param"]


def _equal_when_rounded(weight: torch.Tensor, main_weight: torch.Tensor) -> bool:
    """Return whether a main weight (float32), rounded to the precision of the saved run, equals the weight."""
    main_weight = main_weight.to(weight.device)
    # The checkpoint does not contain that precision, and the run that saved it may have had another one than this run:
    # float32 → bfloat16 → float16 rounds differently than float32 → float16.
    return any(torch.equal(main_weight.to(saved).to(weight.dtype), weight) for saved in (weight.dtype, *_PRECISIONS))
