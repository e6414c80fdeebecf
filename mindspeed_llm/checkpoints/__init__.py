"""Checkpoints: saving, loading, and finding out where a run goes on.

A checkpoint is megatron.core's distributed format, which any TP × PP × DP loads, with run.json and files.json;
`storage.checkpoint_folder` describes the directory.
"""

from mindspeed_llm.checkpoints.batch_size_history import BatchSize, continued, samples_after
from mindspeed_llm.checkpoints.integrity import damage_of
from mindspeed_llm.checkpoints.load_checkpoint import load_training_state, load_weights
from mindspeed_llm.checkpoints.metadata import Progress, RunRecord
from mindspeed_llm.checkpoints.resume import Start, choose_start, identity_to_record, layout_of, undamaged
from mindspeed_llm.checkpoints.rollback import set_later_aside
from mindspeed_llm.checkpoints.run_checkpoints import CheckpointFolder
from mindspeed_llm.checkpoints.run_identity import VERSION as IDENTITY_VERSION
from mindspeed_llm.checkpoints.run_identity import identity_of
from mindspeed_llm.checkpoints.save_checkpoint import PendingSave, SaveError, start_saving
from mindspeed_llm.checkpoints.training_state import TrainingState

__all__ = [
    "IDENTITY_VERSION",
    "BatchSize",
    "CheckpointFolder",
    "PendingSave",
    "Progress",
    "RunRecord",
    "SaveError",
    "Start",
    "TrainingState",
    "choose_start",
    "continued",
    "damage_of",
    "identity_of",
    "identity_to_record",
    "layout_of",
    "load_training_state",
    "load_weights",
    "samples_after",
    "set_later_aside",
    "start_saving",
    "undamaged",
]
