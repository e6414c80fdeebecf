"""Load the base model of an adapter and the adapter itself when a run starts."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from mindspeed_llm.adapters import BaseModel, peft_folder_notice
from mindspeed_llm.arguments.hugging_face_config import HuggingFaceConfig, is_hugging_face_folder, read_config
from mindspeed_llm.checkpoints import (
    RANDOM_BASE,
    RunCheckpoints,
    RunMetadata,
    TrainingProgress,
    TrainingState,
    begin_save,
    check_base,
    import_adapter,
    load_training_state,
    load_weights,
)
from mindspeed_llm.conversion import (
    cached_base_hash,
    combine_digests,
    config_of_run,
    open_adapter,
    store_base_hash,
    tensor_digests,
)
from mindspeed_llm.conversion.rank_files import holds_rank_files
from mindspeed_llm.storage.checkpoint_directory import CARRIED
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer
from mindspeed_llm.training.rank_zero import run_on_rank_zero
from mindspeed_llm.training.run_setup import RunSetup
from mindspeed_llm.tuning import initialize_from_vocabulary

logger = logging.getLogger(__name__)


def load_adapter_and_base(setup: RunSetup, model_and_optimizer: ModelAndOptimizer, record: RunMetadata) -> None:
    """Load the frozen base model, and the adapter of a resumed run or of --lora-load. Collective.

    A base model with random weights is saved once to --save, because nothing else could reproduce it on another layout.

    Args:
        setup: setup of the run.
        model_and_optimizer: model to load into; its `base` is set.
        record: metadata for the checkpoint of a random base model.

    Raises:
        CheckpointError: the adapter was trained on another base model, or a folder contains another model.
    """
    start, load = setup.start, setup.arguments.lora.lora_load
    state = model_and_optimizer.state
    base = TrainingState(state.chunks, None, "base")
    if start.base is not None:
        config = base_config(setup, start.base)
        load_weights(start.base, base, config if holds_rank_files(start.base) else None)
        model_and_optimizer.base = identify_base(start.base, config)
    elif start.kind == "random" and setup.arguments.checkpoint.save is not None:
        folder = _save_random_base(setup, base, record)
        found = identify_base(folder, base_config(setup, folder))
        model_and_optimizer.base = dataclasses.replace(found, path=None)
    if start.kind == "continue":
        assert start.folder is not None and model_and_optimizer.base is not None
        check_base(start.folder, model_and_optimizer.base)
        load_training_state(start.folder, state, optimizer=start.optimizer, rng=start.rng)
    elif load is not None:
        adapter = open_adapter(Path(load), base_config(setup, start.base))
        if model_and_optimizer.base is not None:
            check_base(adapter.folder, model_and_optimizer.base)
        notice = peft_folder_notice(adapter.folder) if adapter.record is None else None
        if notice is not None:
            logger.info(f"notice: {notice}")
        import_adapter(adapter, state)
        logger.info(f"adapter from {load}")
    else:
        arguments = setup.arguments
        initialize_from_vocabulary(state.bare_chunks(), arguments.training.seed, setup.derived.vocabulary.size)
        model_and_optimizer.optimizer.reload_model_params()


def base_config(setup: RunSetup, folder: Path | None) -> HuggingFaceConfig:
    """Return the shape of the base model.

    Args:
        setup: setup of the run.
        folder: folder of the base model; None for random weights.
    """
    if folder is not None and is_hugging_face_folder(folder):
        return read_config(folder)
    if folder is not None and (folder / CARRIED / "config.json").is_file():
        return read_config(folder / CARRIED)
    return config_of_run(setup.arguments, setup.derived.vocabulary.size, None, setup.arguments.adapter_flag)


def identify_base(folder: Path, config: HuggingFaceConfig) -> BaseModel:
    """Hash the tensors of a base model, each rank a part of them. Collective.

    Args:
        folder: folder of the base model.
        config: its shape.
    """
    known = run_on_rank_zero(lambda: cached_base_hash(folder))
    if known is None:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        parts: list[dict[str, str]] = [{} for _ in range(ranks)]
        torch.distributed.all_gather_object(parts, tensor_digests(folder, config, rank, ranks))
        known = combine_digests({name: digest for part in parts for name, digest in part.items()})
        run_on_rank_zero(lambda: store_base_hash(folder, known))
    return dataclasses.replace(known, path=str(folder))


def _save_random_base(setup: RunSetup, base: TrainingState, record: RunMetadata) -> Path:
    """Save the random weights of the base model beside the checkpoints. Collective."""
    root = RunCheckpoints(Path(str(setup.arguments.checkpoint.save)) / RANDOM_BASE)
    metadata = dataclasses.replace(record, progress=TrainingProgress(), has_optimizer=False, has_rng=False)
    begin_save(root, base, metadata, assets=setup.assets).finish()
    folder = root.latest()
    assert folder is not None
    return folder
