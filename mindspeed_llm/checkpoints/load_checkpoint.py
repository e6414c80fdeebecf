"""Reading a checkpoint on this run's layout."""

from __future__ import annotations

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
    """Load the model alone; the optimizer's copies of the weights follow. Collective.

    Args:
        folder: an iter_ folder in either format, or a Hugging Face folder.
        state: what to load into.
        shape: of the model; needed for files of single ranks, which do not say it.

    Raises:
        CheckpointError: the checkpoint is not whole, or is not one of this model.
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
    _put_weights(state, {name: loaded[name] for name in weights})  # it brings everything unsharded, asked for or not
    if state.optimizer is not None:
        state.optimizer.reload_model_params()


def load_training_state(folder: Path, state: TrainingState, *, optimizer: bool, rng: bool) -> None:
    """Load the model and, if asked for, the optimizer's state and the random states. Collective.

    The learning-rate schedule is not part of it: it is a function of the flags and of the progress of the run.

    Args:
        folder: an iter_ folder.
        state: what to load into.
        optimizer: load the optimizer's state; without it the moments start at zero.
        rng: load the random states; the caller has checked that the layout is the one that saved them.

    Raises:
        CheckpointError: the checkpoint is not whole, is not one of this model, or has an optimizer state that was saved
            wrongly.
    """
    wanted = sharded_weights(state)
    weight_names = list(wanted)
    if optimizer:
        wanted.update(sharded_optimizer(state, wanted, is_loading=True))
    if rng:
        wanted.update(sharded_rng_state(torch.empty_like(get_rng_state())))
    loaded = _load(folder, wanted)
    _put_weights(state, {name: loaded[name] for name in weight_names})
    assert state.optimizer is not None
    if optimizer:
        _put_optimizer(folder, state.optimizer, loaded)
    else:
        state.optimizer.reload_model_params()
    if rng:
        set_rng_state(loaded[RNG_KEY].flatten())


def _load(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    if not (folder / "metadata.json").is_file():
        raise CheckpointError(
            f"{folder}: not a distributed checkpoint of megatron.core (no metadata.json); give the folder that holds "
            "latest_checkpointed_iteration.txt of one"
        )
    checked = check_checkpoint_safety(folder, _keys_of_tensors(wanted), wanted.keys() & {"optimizer"})
    try:
        return load_checked_checkpoint(wanted, checked)
    except CheckpointError:
        raise
    except (CheckpointingException, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: does not fit this model: {_short(error)}") from error
    except CheckpointException as error:  # torch's, the same on every rank; a BaseException, with a page of traces
        first = next(iter(error.failures.values()))[0]
        fault = "does not fit this model" if isinstance(first, CheckpointingException) else "cannot be read"
        raise CheckpointError(f"{folder}: {fault}: {_short(first)}") from error


def _keys_of_tensors(wanted: Any) -> set[str]:
    """Names in the checkpoint of everything that will be read; this program asks for tensors alone."""
    if isinstance(wanted, ShardedBase):
        assert not isinstance(wanted, ShardedObject), f"{wanted.key} would be unpickled"
        return {wanted.key}
    if isinstance(wanted, dict):
        return set().union(*(_keys_of_tensors(value) for value in wanted.values()))
    if isinstance(wanted, list | tuple):
        return set().union(*(_keys_of_tensors(value) for value in wanted))
    return set()


def _short(error: BaseException) -> str:
    """First sentence of megatron-core's message, which can run over pages."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " …"


def _put_optimizer(folder: Path, optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Check and load the optimizer's state; in another program's file its values besides tensors may be anything."""
    try:
        check_main_weights(folder, optimizer, loaded["optimizer"])
        load_optimizer(optimizer, loaded["optimizer"])
    except CheckpointError:  # a ValueError too
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError) as error:
        raise CheckpointError(
            f"{folder}: its optimizer state does not fit this run ({type(error).__name__}: {_short(error)}); start "
            "with --load and --no-load-optim, or with --finetune"
        ) from error


def _put_weights(state: TrainingState, weights: dict[str, Any]) -> None:
    for chunk, values in zip(state.bare_chunks(), weights.values(), strict=True):
        load_chunk_weights(chunk, values)
