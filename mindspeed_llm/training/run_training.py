"""A whole run, from checked data to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.model_arguments import Vocabulary
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.checkpoints import (
    IDENTITY_VERSION,
    Progress,
    RunRecord,
    Start,
    TrainingState,
    choose_start,
    identity_of,
    identity_to_record,
    layout_of,
    load_training_state,
    load_weights,
    set_later_aside,
    undamaged,
)
from mindspeed_llm.console.lines import say
from mindspeed_llm.conversion import Companions, config_of_run
from mindspeed_llm.conversion.rank_files import holds_rank_files
from mindspeed_llm.data import Datasets
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.rendezvous import getting_ready, launch_word, own_rank
from mindspeed_llm.lease import Leases
from mindspeed_llm.tokenization import Tokenizer
from mindspeed_llm.training.banner import start_table
from mindspeed_llm.training.checkpointer import Saver
from mindspeed_llm.training.data_verification import check_data_hashes
from mindspeed_llm.training.dataloaders import build_feeds
from mindspeed_llm.training.derived_settings import derive, place_start
from mindspeed_llm.training.experiment_trackers import Trackers, check_trackers
from mindspeed_llm.training.learning_rate_schedule import Length, run_length
from mindspeed_llm.training.metrics_writer import MetricsWriter
from mindspeed_llm.training.model_and_optimizer import build_job
from mindspeed_llm.training.output_dirs import check_places, leased_folders, places_of_rank, run_folder
from mindspeed_llm.training.process_groups import join_layout, leave_layout
from mindspeed_llm.training.rank_failure import naming_lost_ranks
from mindspeed_llm.training.rank_zero import on_rank_zero
from mindspeed_llm.training.run_setup import RunSetup
from mindspeed_llm.training.signals import StoppedError, StopRequest
from mindspeed_llm.training.startup_checks import start_of_all
from mindspeed_llm.training.trainer import Trainer


def run(
    arguments: PretrainArguments,
    device: Device,
    datasets: Datasets,
    tokenizer: Tokenizer | None,
    leases: Leases,
    companions: Companions | None = None,
) -> Path:
    """Train to the end. Collective, but for the checks before the process group starts.

    Args:
        arguments: checked arguments.
        device: where.
        datasets: opened and checked.
        tokenizer: the one that the command names, if any; otherwise the files' manifest describes it.
        leases: of the folders that rank 0 writes to; taken here, released by the caller.
        companions: config, tokenizer and chat template that checkpoints carry, on rank 0.

    Returns:
        the run folder.

    Raises:
        UserError: whatever the user can put right; before the first step where it can be known by then.
    """
    checkpoint, minutes = arguments.checkpoint, arguments.parallel.distributed_timeout_minutes
    with getting_ready(minutes):
        vocabulary, identity = _check(arguments, datasets, tokenizer)
        if own_rank() == 0 and (folders := leased_folders(checkpoint, arguments.logging)):
            leases.take(folders, say, launch_word())
    layout = layout_of(arguments.parallel, arguments.world_size, device.kind)
    train_iters = arguments.training.train_iters
    choose = functools.partial(choose_start, checkpoint, train_iters, layout, identity)
    start, every_rank = start_of_all(choose, device, datasets.files, minutes)
    run_dir = run_folder(checkpoint, arguments.logging)
    place_start(arguments, datasets, start)  # refuses a start that cannot be resumed
    check_data_hashes(datasets.files, arguments.data.verify_data_seconds, minutes)
    stopping = StopRequest()
    with stopping.listening(), _joined(arguments, device):
        start = undamaged(start, checkpoint, train_iters, layout, _say_on_rank_zero)
        arguments, start, order, length = place_start(arguments, datasets, start)
        if start.progress.iteration >= length.iterations:
            _say_complete(start, length)
            return run_dir
        derived = derive(arguments, device.kind, vocabulary, length, order)
        setup = RunSetup(
            arguments, device, datasets, tokenizer, leases, companions, identity, start, derived, every_rank, run_dir
        )
        _leave_later_checkpoints(setup)
        complete = _train(setup, stopping)
    if not complete:
        raise StoppedError(_where_it_stopped(checkpoint.save, stopping))
    return run_dir


def _check(
    arguments: PretrainArguments, datasets: Datasets, tokenizer: Tokenizer | None
) -> tuple[Vocabulary, dict[str, Any]]:
    """Refuse what no run can have, before the ranks meet. Returns the vocabulary and the identity of the run."""
    training, batch_size = arguments.training, arguments.global_batch_size
    order = datasets.train_order(arguments.data, training.seed, batch_size)
    run_length(training, batch_size, order.epoch_length)
    check_trackers(arguments.logging)
    check_places(places_of_rank(arguments.checkpoint, arguments.logging))
    vocabulary = arguments.vocabulary(datasets.tokenizer_vocabulary(tokenizer))
    sha256 = tokenizer.sha256 if tokenizer else None
    return vocabulary, identity_of(arguments, datasets.files, sha256, vocabulary.size)


@contextlib.contextmanager
def _joined(arguments: PretrainArguments, device: Device) -> Iterator[None]:
    """Create the process groups inside the block, and name a rank that is lost there."""
    join_layout(arguments, device)
    try:
        with naming_lost_ranks():
            yield
    finally:
        leave_layout()


def _say_complete(start: Start, length: Length) -> None:
    if torch.distributed.get_rank() == 0:
        print(f"the run is complete: {start.progress.iteration} of {length.iterations} iterations are done")


def _where_it_stopped(save: str | None, stopping: StopRequest) -> str:
    asked = stopping.signal or "a signal to another rank"
    if save is None:
        return f"by {asked}, and nothing was saved: the command has no --save"
    return f"by {asked}; the step was finished and a checkpoint saved, the same command goes on from there"


def _leave_later_checkpoints(setup: RunSetup) -> None:
    """Set aside what is later in --save than the start. Collective."""
    save = setup.arguments.checkpoint.save
    if save is None:
        return

    def leave() -> str | None:
        setup.leases.check(thoroughly=True)
        return set_later_aside(Path(save), setup.start, identity_to_record(setup.identity, setup.start))

    line = on_rank_zero(leave)
    if line is not None:
        _say_on_rank_zero(line)


def _train(setup: RunSetup, stopping: StopRequest) -> bool:
    """The run itself; False if it was stopped before its end."""
    arguments, start, derived = setup.arguments, setup.start, setup.derived
    job = build_job(arguments, setup.device, derived)
    feeds = build_feeds(
        arguments.data, arguments.training, setup.datasets, derived, setup.device, tokenizer=setup.tokenizer
    )
    _load(setup, job.state)
    job.scheduler.follow(start.progress)
    record = _record_of(setup)
    writer = MetricsWriter(setup.run_dir, derived.length.iterations, start.progress.iteration, active=_is_rank_zero())
    writer.check_lease = setup.leases.check
    with contextlib.closing(writer):
        for notice in start.notices:
            writer.say(notice)
        own = sum(parameter.numel() for chunk in job.chunks for parameter in chunk.parameters())
        writer.say(start_table(setup, own))
        started = {"layout": record.layout, "versions": record.versions, "arguments": record.arguments}
        writer.record("start", started)
        if writer.active:
            writer.trackers = Trackers(arguments.logging, setup.run_dir, record.arguments, writer.say)
        check_lease = functools.partial(setup.leases.check, thoroughly=True)
        saver = Saver(arguments.checkpoint, job, record, writer.say, check_lease, setup.companions)
        with contextlib.closing(saver):
            return Trainer(setup, job, feeds, record.progress, writer, saver, stopping).train()


def _record_of(setup: RunSetup) -> RunRecord:
    """What run.json says of this run, with a progress of its own for the trainer to advance."""
    arguments = setup.arguments
    return RunRecord(
        progress=dataclasses.replace(setup.start.progress),
        identity=identity_to_record(setup.identity, setup.start) if _is_rank_zero() else setup.identity,
        identity_version=IDENTITY_VERSION,
        layout=layout_of(arguments.parallel, arguments.world_size, setup.device.kind),
        batch_sizes=list(setup.derived.length.batch_sizes),
        arguments={**dataclasses.asdict(arguments), "given": sorted(arguments.given)},
        versions=setup.every_rank[torch.distributed.get_rank()].versions,
    )


def _load(setup: RunSetup, state: TrainingState) -> None:
    """Load the weights, or the whole training state, that the run starts from."""
    start = setup.start
    if start.folder is None:
        return
    if start.record is None or (start.kind == "load" and start.progress == Progress()):
        shape = None
        if holds_rank_files(start.folder):  # they do not say what the model looks like
            shape = config_of_run(setup.arguments, setup.derived.vocabulary.size, None, f"--load {start.folder}")
        load_weights(start.folder, state, shape)
    else:
        load_training_state(start.folder, state, optimizer=start.optimizer, rng=start.rng)


def _say_on_rank_zero(text: str) -> None:
    if torch.distributed.get_rank() == 0:
        say(text)


def _is_rank_zero() -> bool:
    return torch.distributed.get_rank() == 0 and parallel_state.model_parallel_is_initialized()
