"""Run a training job from checked data to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.model_arguments import Vocabulary
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import (
    IDENTITY_VERSION,
    RunMetadata,
    TrainingProgress,
    TrainingState,
    checkpoint_layout,
    compute_identity,
    find_start_point,
    identity_to_record,
    load_training_state,
    load_weights,
    set_aside_later_checkpoints,
    verify_start_point,
)
from mindspeed_llm.conversion import ModelAssets, config_of_run
from mindspeed_llm.conversion.rank_files import holds_rank_files
from mindspeed_llm.data import Datasets
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.rendezvous import current_rank, launch_token, report_startup_errors
from mindspeed_llm.lease import HeldLeases
from mindspeed_llm.tokenization import Tokenizer
from mindspeed_llm.training.adapter_start import load_adapter_and_base
from mindspeed_llm.training.banner import format_banner
from mindspeed_llm.training.checkpoint_exports import CheckpointExports
from mindspeed_llm.training.checkpointer import Checkpointer
from mindspeed_llm.training.data_notices import data_notices
from mindspeed_llm.training.data_verification import check_data_hashes
from mindspeed_llm.training.dataloaders import build_dataloaders
from mindspeed_llm.training.derived_settings import derive_settings, locate_start_point
from mindspeed_llm.training.evaluation_callback import EvaluationCallback
from mindspeed_llm.training.experiment_trackers import ExperimentTrackers, check_trackers
from mindspeed_llm.training.learning_rate_schedule import run_length
from mindspeed_llm.training.metrics_writer import MetricsWriter
from mindspeed_llm.training.model_and_optimizer import setup_model_and_optimizer
from mindspeed_llm.training.output_dirs import check_writable, leased_dirs, output_dirs_of_rank, run_dir_of
from mindspeed_llm.training.process_groups import destroy_process_groups, init_distributed
from mindspeed_llm.training.rank_failure import report_lost_ranks
from mindspeed_llm.training.rank_zero import run_on_rank_zero
from mindspeed_llm.training.run_pictures import RunPictures
from mindspeed_llm.training.run_setup import RunSetup
from mindspeed_llm.training.signals import StoppedError, StopRequest
from mindspeed_llm.training.startup_checks import agree_on_start_point
from mindspeed_llm.training.trainer import Trainer, early_stop_line

logger = logging.getLogger(__name__)


def train(
    arguments: PretrainArguments,
    device: Device,
    datasets: Datasets,
    tokenizer: Tokenizer | None,
    leases: HeldLeases,
    assets: ModelAssets | None = None,
    draw: Callable[[Path], object] = lambda run_dir: None,
    on_evaluation: EvaluationCallback | None = None,
) -> Path:
    """Train a model to the end of its run. Collective, except for the checks before the process groups exist.

    Args:
        arguments: checked arguments.
        device: device of this rank.
        datasets: opened and checked data sets.
        tokenizer: tokenizer that the command names; None: the manifest of the files describes it.
        leases: leases of the directories that rank 0 writes to. Taken here, released by the caller.
        assets: config, tokenizer and chat template that checkpoints carry; on rank 0 only.
        draw: draws loss.png of a run directory; called if the run ends early.
        on_evaluation: further work at each evaluation, such as generating answers.

    Returns:
        The run directory.

    Raises:
        UserError: invalid input. Raised before the first step where possible.
        StoppedError: a signal stopped the run; its checkpoint is saved.
    """
    checkpoint, minutes = arguments.checkpoint, arguments.parallel.distributed_timeout_minutes
    with report_startup_errors(minutes):
        vocabulary, identity = _check_before_rendezvous(arguments, datasets, tokenizer)
        # Rank 0 takes the leases before anything is written, because two runs must not write to the same directory.
        if current_rank() == 0 and (folders := leased_dirs(checkpoint, arguments.logging)):
            leases.take(folders, launch_token())
    layout = checkpoint_layout(arguments.parallel, arguments.world_size, device.kind)
    train_iters = arguments.training.train_iters
    find_start = functools.partial(find_start_point, checkpoint, train_iters, layout, identity)
    start, every_rank = agree_on_start_point(find_start, device, datasets.files, minutes)
    run_dir = run_dir_of(checkpoint, arguments.logging)
    # Called for its errors only: a start that cannot be resumed is refused before hashing, which may take minutes.
    locate_start_point(arguments, datasets, start)
    check_data_hashes(datasets.files, arguments.data.verify_data_seconds, minutes)
    stopping = StopRequest()
    with stopping.handle_signals(), _process_groups(arguments, device):
        # Only now, so that the ranks can share the hashing of the checkpoint. The result may be an older checkpoint, so
        # the start point is located again.
        start = verify_start_point(start, checkpoint, train_iters, layout)
        arguments, start, order, length = locate_start_point(arguments, datasets, start)
        if start.progress.iteration >= length.iterations:
            done = start.progress.iteration
            logger.info(f"the run is complete: {done} of {length.iterations} iterations are done")
            return run_dir
        line = early_stop_line(arguments.training, start.progress)
        if line is not None and start.kind == "continue":
            logger.info(f"the run is complete: {line}")
            return run_dir
        derived = derive_settings(arguments, device.kind, vocabulary, length, order, datasets.trained_share)
        setup = RunSetup(
            arguments, device, datasets, tokenizer, leases, assets, identity, start, derived, every_rank, run_dir,
            on_evaluation,
        )  # fmt: skip
        _set_aside_later_checkpoints(setup)
        complete = _train(setup, stopping, draw)
    if not complete:
        raise StoppedError(_stop_message(checkpoint.save, stopping))
    return run_dir


def _check_before_rendezvous(
    arguments: PretrainArguments, datasets: Datasets, tokenizer: Tokenizer | None
) -> tuple[Vocabulary, dict[str, Any]]:
    """Check this rank's inputs and return the vocabulary and the identity of the run."""
    training, batch_size = arguments.training, arguments.global_batch_size
    order = datasets.train_order(arguments.data, training.seed, batch_size)
    run_length(training, batch_size, order.epoch_length)  # raises if the data has less than one global batch
    check_trackers(arguments.logging)
    check_writable(output_dirs_of_rank(arguments.checkpoint, arguments.logging))
    vocabulary = arguments.vocabulary(datasets.tokenizer_vocabulary(tokenizer))
    sha256 = tokenizer.sha256 if tokenizer else None
    return vocabulary, compute_identity(arguments, datasets.files, sha256, vocabulary.size)


@contextlib.contextmanager
def _process_groups(arguments: PretrainArguments, device: Device) -> Iterator[None]:
    """Provide process groups inside the block, and report the loss of another rank there."""
    init_distributed(arguments, device)
    try:
        with report_lost_ranks():
            yield
    finally:
        destroy_process_groups()


def _stop_message(save: str | None, stopping: StopRequest) -> str:
    reason = stopping.signal or "a signal to another rank"
    if save is None:
        return f"by {reason}, and nothing was saved: the command has no --save"
    return f"by {reason}; the step was finished and a checkpoint saved. Run the same command to resume"


def _set_aside_later_checkpoints(setup: RunSetup) -> None:
    """Move checkpoints in --save that are later than the start point to another directory. Collective."""
    save = setup.arguments.checkpoint.save
    if save is None:
        return

    def move() -> str | None:
        setup.leases.check(thoroughly=True)
        return set_aside_later_checkpoints(Path(save), setup.start, identity_to_record(setup.identity, setup.start))

    line = run_on_rank_zero(move)
    if line is not None:
        logger.warning(line)


def _train(setup: RunSetup, stopping: StopRequest, draw: Callable[[Path], object]) -> bool:
    """Build everything and train. Return False if a signal stopped the run before its end."""
    arguments, start, derived = setup.arguments, setup.start, setup.derived
    model_and_optimizer = setup_model_and_optimizer(arguments, setup.device, derived)
    dataloaders = build_dataloaders(
        arguments.data,
        arguments.training,
        setup.datasets,
        derived,
        setup.device,
        tokenizer=setup.tokenizer,
        adapter=arguments.adapter,
    )
    record = _run_metadata(setup)
    if model_and_optimizer.adapter is None:
        _load_checkpoint(setup, model_and_optimizer.state)
    else:
        load_adapter_and_base(setup, model_and_optimizer, record)
    # The schedule is a function of the progress and the flags; its state in the checkpoint is not loaded.
    model_and_optimizer.scheduler.follow(start.progress)
    writer = MetricsWriter(setup.run_dir, derived.length.iterations, start.progress.iteration, active=_is_rank_zero())
    writer.check_lease = setup.leases.check
    with contextlib.closing(writer):
        for notice in (*start.notices, *data_notices(arguments, setup.datasets, derived.length)):
            logger.info(notice)
        parameters = [parameter for chunk in model_and_optimizer.chunks for parameter in chunk.parameters()]
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        logger.info(format_banner(setup, sum(parameter.numel() for parameter in parameters), trained))
        start_line = {"layout": record.layout, "versions": record.versions, "arguments": record.arguments}
        writer.record("start", start_line)
        if writer.active:
            writer.trackers = ExperimentTrackers(arguments.logging, setup.run_dir, record.arguments)
        check_lease = functools.partial(setup.leases.check, thoroughly=True)
        is_adapter = model_and_optimizer.adapter is not None
        with (
            RunPictures(setup.run_dir, writer.active, draw) as pictures,
            CheckpointExports(arguments.checkpoint, is_adapter, writer.active) as exports,
            contextlib.closing(
                Checkpointer(arguments.checkpoint, model_and_optimizer, record, check_lease, exports, setup.assets)
            ) as checkpointer,
        ):
            # The trainer advances the progress of `record`, so that every checkpoint records the current one.
            progress = record.progress
            trainer = Trainer(
                setup, model_and_optimizer, dataloaders, progress, writer, checkpointer, stopping, pictures
            )
            complete = trainer.train()
            if not complete:
                pictures.draw_last()
            return complete


def _run_metadata(setup: RunSetup) -> RunMetadata:
    """Build the content of run.json, with a copy of the progress that the trainer advances."""
    arguments = setup.arguments
    return RunMetadata(
        progress=dataclasses.replace(setup.start.progress),
        # Only rank 0 writes run.json, and the complete identity includes a hash of the weights of --load.
        identity=identity_to_record(setup.identity, setup.start) if _is_rank_zero() else setup.identity,
        identity_version=IDENTITY_VERSION,
        layout=checkpoint_layout(arguments.parallel, arguments.world_size, setup.device.kind),
        batch_sizes=list(setup.derived.length.batch_sizes),
        # Where a value comes from is no part of the run, and may change when it resumes.
        arguments={**dataclasses.asdict(arguments), "given": sorted(arguments.given), "sources": {}},
        versions=setup.every_rank[torch.distributed.get_rank()].versions,
    )


def _load_checkpoint(setup: RunSetup, state: TrainingState) -> None:
    """Load the weights or the complete training state of the start point, if there is one."""
    start = setup.start
    if start.folder is None:
        return
    if start.record is None or (start.kind == "load" and start.progress == TrainingProgress()):
        shape = None
        # The older layout with one file per rank does not describe the model, so its config comes from the flags.
        if holds_rank_files(start.folder):
            shape = config_of_run(setup.arguments, setup.derived.vocabulary.size, None, f"--load {start.folder}")
        load_weights(start.folder, state, shape)
    else:
        load_training_state(start.folder, state, optimizer=start.optimizer, rng=start.rng)


def _is_rank_zero() -> bool:
    return torch.distributed.get_rank() == 0 and parallel_state.model_parallel_is_initialized()
