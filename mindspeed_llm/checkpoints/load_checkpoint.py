"""Load a checkpoint into the model and the optimizer, on the parallel layout of this run.

Distributed checkpoints load on any TP × PP × DP layout. A Hugging Face folder, and Megatron's older layout of one file
per rank, give the model only.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, is_hugging_face_folder
from mindspeed_llm.checkpoints.checked_reader import load_checked_checkpoint
from mindspeed_llm.checkpoints.import_weights import import_hugging_face, import_rank_files
from mindspeed_llm.checkpoints.optimizer_state import check_main_weights, load_optimizer
from mindspeed_llm.checkpoints.pickle_safety import check_checkpoint_safety
from mindspeed_llm.checkpoints.training_state import (
    RNG_KEY,
    TrainingState,
    get_rng_state,
    load_chunk_weights,
    set_rng_state,
    sharded_optimizer,
    sharded_rng_state,
    sharded_weights,
)
from mindspeed_llm.conversion.rank_files import holds_rank_files
from mindspeed_llm.errors import CheckpointError


def load_weights(folder: Path, state: TrainingState, shape: HuggingFaceConfig | None = None) -> None:
    """Load only the model, and copy it to the main weights (float32) of the optimizer. Collective.

    Args:
        folder: an iter_ folder in either format, or a Hugging Face folder.
        state: model and optimizer to load into.
        shape: shape of the model. Required for one file per rank, because those files do not contain it.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged, or contains another model.
    """
    if is_hugging_face_folder(folder):
        import_hugging_face(folder, state)
        return
    if holds_rank_files(folder):
        assert shape is not None
        import_rank_files(folder, shape, state)
        return
    weights = sharded_weights(state)
    loaded = _load(folder, weights)
    # By name, because megatron-core merges what it loads into the common part of the checkpoint, and returns both.
    _put_weights(state, {name: loaded[name] for name in weights})
    if state.optimizer is not None:
        # Otherwise the first step would overwrite the loaded model with the main weights of the random model.
        state.optimizer.reload_model_params()


def load_training_state(folder: Path, state: TrainingState, *, optimizer: bool, rng: bool) -> None:
    """Load the model and, if requested, the optimizer state and the RNG states. Collective.

    The learning rate schedule is not loaded: it is a function of the flags and of the progress of the run.

    Args:
        folder: an iter_ folder of a distributed checkpoint.
        state: model and optimizer to load into.
        optimizer: whether to load the optimizer state. Without it the moments start at zero.
        rng: whether to load the RNG states. The caller has checked that the layout equals that of the saved run.

    Raises:
        CheckpointError: The checkpoint is incomplete or damaged, contains another model, or has an optimizer state that
            was saved incorrectly.
    """
    wanted = sharded_weights(state)
    weight_names = list(wanted)
    if optimizer:
        wanted.update(sharded_optimizer(state, wanted, is_loading=True))
    if rng:
        wanted.update(sharded_rng_state(torch.empty_like(get_rng_state())))
    loaded = _load(folder, wanted)
    # The model first: `check_main_weights` compares the loaded optimizer state with it.
    _put_weights(state, {name: loaded[name] for name in weight_names})
    assert state.optimizer is not None
    if optimizer:
        _put_optimizer(folder, state.optimizer, loaded)
    else:
        state.optimizer.reload_model_params()
    if rng:
        set_rng_state(loaded[RNG_KEY].flatten())


def _load(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Check a distributed checkpoint, load it, and turn errors of torch and megatron-core into one line each."""
    if not (folder / "metadata.json").is_file():
        raise CheckpointError(
            f"{folder}: not a distributed checkpoint of megatron.core (no metadata.json); give a directory that "
            "contains such checkpoints and latest_checkpointed_iteration.txt"
        )
    checked = check_checkpoint_safety(folder, _keys_of_tensors(wanted), wanted.keys() & {"optimizer"})
    empty = _empty_entries(wanted)
    try:
        return _merged(load_checked_checkpoint(wanted, checked), empty)
    except CheckpointError:
        # It is a ValueError, which the next clause would report as a model that does not fit.
        raise
    except (CheckpointingException, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: does not fit this model: {_short(error)}") from error
    except CheckpointException as error:
        # torch's class: a BaseException, the same on every rank, whose text is a page of tracebacks. The first cause is
        # enough.
        first = next(iter(error.failures.values()))[0]
        fault = "does not fit this model" if isinstance(first, CheckpointingException) else "cannot be read"
        raise CheckpointError(f"{folder}: {fault}: {_short(first)}") from error


def _is_empty(value: Any) -> bool:
    """Return whether a part of a state dictionary is a container without any value, such as {} or [[], []]."""
    if isinstance(value, dict):
        return all(_is_empty(each) for each in value.values())
    return isinstance(value, list) and all(_is_empty(each) for each in value)


def _empty_entries(wanted: dict[Any, Any]) -> dict[Any, Any]:
    """Return the entries of a sharded state dictionary that are empty containers.

    A pipeline stage without a part of the adapter has them. megatron-core does not return them from a checkpoint, but
    expects them when it loads the state of an optimizer.
    """
    found: dict[Any, Any] = {}
    for key, value in wanted.items():
        if _is_empty(value):
            found[key] = copy.deepcopy(value)
        elif isinstance(value, dict) and (inside := _empty_entries(value)):
            found[key] = inside
    return found


def _merged(loaded: dict[Any, Any], further: dict[Any, Any]) -> dict[Any, Any]:
    """Add entries that are missing in a loaded state dictionary, also inside its dictionaries, and return it."""
    for key, value in further.items():
        if isinstance(value, dict) and isinstance(loaded.get(key), dict):
            _merged(loaded[key], value)
        else:
            loaded.setdefault(key, value)
    return loaded


def _keys_of_tensors(wanted: Any) -> set[str]:
    """Return the names in the checkpoint of all tensors in a sharded state dictionary."""
    if isinstance(wanted, ShardedBase):
        # megatron-core reads sharded objects with pickle. This program never requests any.
        assert not isinstance(wanted, ShardedObject), f"{wanted.key} would be unpickled"
        return {wanted.key}
    if isinstance(wanted, dict):
        return set().union(*(_keys_of_tensors(value) for value in wanted.values()))
    if isinstance(wanted, list | tuple):
        return set().union(*(_keys_of_tensors(value) for value in wanted))
    return set()


def _short(error: BaseException) -> str:
    """Return the message of an error on one line of at most 400 characters; megatron-core's can fill pages."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " …"


def _put_optimizer(folder: Path, optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Check the optimizer state and load it."""
    try:
        check_main_weights(folder, optimizer, loaded["optimizer"])
        load_optimizer(optimizer, loaded["optimizer"])
    except CheckpointError:
        # It is a ValueError, which the next clause would report as a state that does not fit.
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError) as error:
        # Wide, because in a file of another program the values that are not tensors can have any type and structure.
        raise CheckpointError(
            f"{folder}: its optimizer state does not fit this run ({type(error).__name__}: {_short(error)}); start "
            "with --load and --no-load-optim, or with --finetune"
        ) from error


def _put_weights(state: TrainingState, weights: dict[str, Any]) -> None:
    """Copy loaded weights into the chunks of the model; `weights` has one entry for each chunk, in their order."""
    for chunk, values in zip(state.bare_chunks(), weights.values(), strict=True):
        load_chunk_weights(chunk, values, state)
