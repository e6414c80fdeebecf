"""Checkpoints: saving, loading, and finding out where a run goes on.

SAVE/latest_checkpointed_iteration.txt     number of the newest whole checkpoint
SAVE/iter_0000010/                         megatron.core's distributed checkpoint: any TP × PP × DP loads it
SAVE/iter_0000010/run.json                 iteration, consumed samples, scheduler, what run this is
SAVE/iter_0000010/files.json               size and SHA-256 of every file, checked before loading
SAVE/set_aside_20260101-120000/            later checkpoints of a run that was set back; no longer part of it
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
