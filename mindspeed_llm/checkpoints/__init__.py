"""Save and load checkpoints, and decide which checkpoint a run resumes from.

A checkpoint has megatron-core's distributed format, which any TP × PP × DP layout can load, with run.json (metadata)
and files.json (hashes) beside it. `storage.checkpoint_directory` describes the layout of the directory.
"""

from mindspeed_llm.checkpoints.base_model import RANDOM_BASE, check_base, find_base
from mindspeed_llm.checkpoints.batch_size_history import BatchSizeChange, append_batch_size, samples_after_iterations
from mindspeed_llm.checkpoints.import_weights import import_adapter
from mindspeed_llm.checkpoints.integrity import find_damage
from mindspeed_llm.checkpoints.load_checkpoint import load_training_state, load_weights
from mindspeed_llm.checkpoints.metadata import RunMetadata, TrainingProgress
from mindspeed_llm.checkpoints.resume import (
    StartPoint,
    checkpoint_layout,
    find_start_point,
    identity_to_record,
    verify_start_point,
)
from mindspeed_llm.checkpoints.rollback import set_aside_later_checkpoints
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints, best_checkpoint
from mindspeed_llm.checkpoints.run_identity import VERSION as IDENTITY_VERSION
from mindspeed_llm.checkpoints.run_identity import compute_identity
from mindspeed_llm.checkpoints.save_checkpoint import PendingSave, SaveError, begin_save
from mindspeed_llm.checkpoints.training_state import TrainingState

__all__ = [
    "IDENTITY_VERSION",
    "RANDOM_BASE",
    "BatchSizeChange",
    "PendingSave",
    "RunCheckpoints",
    "RunMetadata",
    "SaveError",
    "StartPoint",
    "TrainingProgress",
    "TrainingState",
    "append_batch_size",
    "begin_save",
    "best_checkpoint",
    "check_base",
    "checkpoint_layout",
    "compute_identity",
    "find_base",
    "find_damage",
    "find_start_point",
    "identity_to_record",
    "import_adapter",
    "load_training_state",
    "load_weights",
    "samples_after_iterations",
    "set_aside_later_checkpoints",
    "verify_start_point",
]
