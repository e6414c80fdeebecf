"""Checkpoints: saving, loading, and finding out where a run goes on.

A checkpoint is megatron.core's distributed format, which any TP × PP × DP loads, with run.json and files.json;
`storage.checkpoint_folder` describes the directory.
"""

from mindspeed_llm.checkpoints.batch_sizes import BatchSize, continued, samples_after
from mindspeed_llm.checkpoints.branches import set_later_aside
from mindspeed_llm.checkpoints.folder import CheckpointFolder
from mindspeed_llm.checkpoints.identity import VERSION as IDENTITY_VERSION
from mindspeed_llm.checkpoints.identity import identity_of
from mindspeed_llm.checkpoints.integrity import damage_of
from mindspeed_llm.checkpoints.loading import load_training_state, load_weights
from mindspeed_llm.checkpoints.record import Progress, RunRecord
from mindspeed_llm.checkpoints.saving import PendingSave, SaveError, start_saving
from mindspeed_llm.checkpoints.start import Start, choose_start, identity_to_record, layout_of, undamaged
from mindspeed_llm.checkpoints.state import TrainingState

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
