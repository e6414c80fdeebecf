"""Writing a checkpoint: beside, then renamed, then made the newest."""

from __future__ import annotations

import shutil

import torch
from megatron.core import dist_checkpointing

from mindspeed_llm.checkpoints.folder import CheckpointFolder
from mindspeed_llm.checkpoints.record import RunRecord
from mindspeed_llm.checkpoints.state import TrainingState, rng_bytes, sharded_optimizer, sharded_rng, sharded_weights


def save_checkpoint(folder: CheckpointFolder, state: TrainingState, record: RunRecord) -> None:
    """Save weights and, where the record says so, optimizer and random states.

    Every rank writes its shards into iter_N.saving; when all have, rank 0 renames the folder and then points the
    tracker at it, so that a run stopped at any moment leaves whole checkpoints only. Collective.
    """
    iteration = record.progress.iteration
    target = folder.iteration_path(iteration)
    saving = target.with_name(target.name + ".saving")
    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.rmtree(saving, ignore_errors=True)
        saving.mkdir(parents=True)
    torch.distributed.barrier()

    state.finish_gathering()
    contents = sharded_weights(state)
    if record.has_optimizer:
        contents.update(sharded_optimizer(state, contents, is_loading=False))
    if record.has_rng:
        contents.update(sharded_rng(rng_bytes()))
    dist_checkpointing.save(contents, str(saving))
    torch.distributed.barrier()

    if rank == 0:
        record.write(saving)
        replaced = target.with_name(target.name + ".replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        saving.rename(target)
        folder.set_latest(iteration)
        shutil.rmtree(replaced, ignore_errors=True)
    torch.distributed.barrier()
