"""A whole run, from checked data to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from mindspeed_llm.arguments.model import Vocabulary
from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.checkpoints import (
    IDENTITY_VERSION,
    Progress,
    RunRecord,
    Start,
    TrainingState,
    identity_of,
    identity_to_record,
    layout_of,
    load_training_state,
    load_weights,
    set_later_aside,
    undamaged,
)
from mindspeed_llm.console.lines import say
from mindspeed_llm.console.tables import named_values
from mindspeed_llm.conversion import Companions, config_of_run
from mindspeed_llm.conversion.rank_files import holds_rank_files
from mindspeed_llm.data import Datasets
from mindspeed_llm.devices import Device
from mindspeed_llm.devices.meeting import Facts, first_of_machine, getting_ready, launch_word, own_rank
from mindspeed_llm.lease import Leases
from mindspeed_llm.tokens import Tokenizer
from mindspeed_llm.training.agreement import start_of_all
from mindspeed_llm.training.data_check import check_data_hashes
from mindspeed_llm.training.derived import DerivedSettings, derive, place_start
from mindspeed_llm.training.feeds import build_feeds
from mindspeed_llm.training.job import Job, build_job
from mindspeed_llm.training.layout import join_layout, leave_layout
from mindspeed_llm.training.loop import Loop, train
from mindspeed_llm.training.lost_ranks import naming_lost_ranks
from mindspeed_llm.training.metrics import MetricsWriter
from mindspeed_llm.training.places import check_places
from mindspeed_llm.training.rank_zero import on_rank_zero
from mindspeed_llm.training.resume import batch_notice
from mindspeed_llm.training.saver import Saver
from mindspeed_llm.training.schedule import Length, run_length
from mindspeed_llm.training.start_table import layout_words, machine_lines, version_lines
from mindspeed_llm.training.stopping import StoppedError, StopRequest
from mindspeed_llm.training.trackers import Trackers, check_trackers


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """What a run is made of, known before its model is built.

    Attributes:
        arguments: with the batch size of the run that is resumed.
        device: where.
        datasets: opened and checked.
        tokenizer: the one that the command names, if any.
        leases: of the folders that rank 0 writes to.
        companions: config, tokenizer and chat template that checkpoints carry, on rank 0.
        identity: of the run; see `checkpoints.identity_of`.
        start: where the run starts.
        derived: order of the data, length, vocabulary, operators and attention kernel.
        every_rank: what each rank said of itself.
        run_dir: the run folder.
    """

    arguments: PretrainArguments
    device: Device
    datasets: Datasets
    tokenizer: Tokenizer | None
    leases: Leases
    companions: Companions | None
    identity: dict[str, Any]
    start: Start
    derived: DerivedSettings
    every_rank: list[Facts]
    run_dir: Path


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
    with getting_ready(arguments.parallel.distributed_timeout_minutes):
        order = datasets.train_order(arguments.data, arguments.training.seed, arguments.global_batch_size)
        run_length(arguments, order.epoch_length)  # refuses what no run can have, before the ranks meet
        check_trackers(arguments.logging)
        check_places(_places(arguments))
        vocabulary = arguments.vocabulary(vocabulary_of(datasets, tokenizer))
        identity = identity_of(arguments, datasets.files, tokenizer.sha256 if tokenizer else None, vocabulary.size)
        if own_rank() == 0 and (folders := leased_folders(arguments)):
            leases.take(folders, say, launch_word())
    start, every_rank = start_of_all(arguments, device, datasets.files, identity)
    run_dir = run_folder(arguments)
    place_start(arguments, datasets, start)  # refuses a start that cannot be resumed
    check_data_hashes(arguments, datasets.files)
    stopping = StopRequest()
    with stopping.listening():
        join_layout(arguments, device)
        try:
            with naming_lost_ranks():
                start = undamaged(start, arguments, layout_of(arguments, device.kind), _say_on_rank_zero)
                arguments, start, order, length = place_start(arguments, datasets, start)
                if start.progress.iteration >= length.iterations:
                    _say_complete(start, length)
                    return run_dir
                _leave_later_checkpoints(arguments, start, identity, leases)
                setup = RunSetup(
                    arguments,
                    device,
                    datasets,
                    tokenizer,
                    leases,
                    companions,
                    identity=identity,
                    start=start,
                    derived=derive(arguments, device.kind, vocabulary, length, order),
                    every_rank=every_rank,
                    run_dir=run_dir,
                )
                complete = _train(setup, stopping)
        finally:
            leave_layout()
    if not complete:
        raise StoppedError(_where_it_stopped(arguments, stopping))
    return run_dir


def _say_complete(start: Start, length: Length) -> None:
    if torch.distributed.get_rank() == 0:
        print(f"the run is complete: {start.progress.iteration} of {length.iterations} iterations are done")


def _where_it_stopped(arguments: PretrainArguments, stopping: StopRequest) -> str:
    asked = stopping.signal or "a signal to another rank"
    if arguments.checkpoint.save is None:
        return f"by {asked}, and nothing was saved: the command has no --save"
    return f"by {asked}; the step was finished and a checkpoint saved, the same command goes on from there"


def run_folder(arguments: PretrainArguments) -> Path:
    """--run-dir, else run/ inside --save, else runs/TIME."""
    if arguments.logging.run_dir is not None:
        return Path(arguments.logging.run_dir)
    if arguments.checkpoint.save is not None:
        return Path(arguments.checkpoint.save) / "run"
    return Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def leased_folders(arguments: PretrainArguments) -> dict[str, Path]:
    """Flag → folder that one run at a time writes to: --save, and --run-dir outside of it.

    A run folder of neither has the time in its name.
    """
    save, run_dir = arguments.checkpoint.save, arguments.logging.run_dir
    folders = {"--save": Path(save)} if save is not None else {}
    if run_dir is not None and not (save and Path(run_dir).resolve().is_relative_to(Path(save).resolve())):
        folders["--run-dir"] = Path(run_dir)
    return folders


def _leave_later_checkpoints(
    arguments: PretrainArguments, start: Start, identity: dict[str, Any], leases: Leases
) -> None:
    """Set aside what is later in --save than the start. Collective."""
    save = arguments.checkpoint.save
    if save is None:
        return

    def leave() -> str | None:
        leases.check(thoroughly=True)
        return set_later_aside(Path(save), start, identity_to_record(identity, start))

    line = on_rank_zero(leave)
    if line is not None:
        _say_on_rank_zero(line)


def _places(arguments: PretrainArguments) -> dict[str, Path]:
    """Flag → folder that this rank writes to: shards are written by every machine, the run folder by rank 0."""
    places = {}
    if arguments.checkpoint.save is not None and first_of_machine():
        places["--save"] = Path(arguments.checkpoint.save)
    of_rank_zero = {"--run-dir": arguments.logging.run_dir, "--tensorboard-dir": arguments.logging.tensorboard_dir}
    for flag, folder in of_rank_zero.items() if own_rank() == 0 else ():
        if folder is not None:
            places[flag] = Path(folder)
    return places


def _train(setup: RunSetup, stopping: StopRequest) -> bool:
    """The run itself; False if it was stopped before its end."""
    arguments, start, tokenizer, derived = setup.arguments, setup.start, setup.tokenizer, setup.derived
    job = build_job(arguments, setup.device, derived)
    feeds = build_feeds(
        arguments,
        setup.datasets,
        derived,
        setup.device,
        eod=tokenizer.end_id if tokenizer else None,
        pad=tokenizer.pad_id if tokenizer else None,
    )
    _load(start, job.state, arguments, derived.vocabulary)
    job.scheduler.follow(start.progress)
    record = _record_of(setup)
    writer = MetricsWriter(setup.run_dir, derived.length.iterations, start.progress.iteration, active=_is_rank_zero())
    writer.check_lease = setup.leases.check
    try:
        for notice in start.notices:
            writer.say(notice)
        writer.say(_description(setup, job))
        started = {"layout": record.layout, "versions": record.versions, "arguments": record.arguments}
        writer.record("start", started)
        if writer.active:
            writer.trackers = Trackers(arguments.logging, setup.run_dir, record.arguments, writer.say)
        check_lease = functools.partial(setup.leases.check, thoroughly=True)
        saver = Saver(arguments.checkpoint, job, record, writer.say, check_lease, setup.companions)
        loop = Loop(
            arguments,
            job,
            setup.device,
            feeds,
            record.progress,
            derived.length.iterations,
            writer,
            setup.run_dir,
            saver,
            stopping,
        )
        with contextlib.closing(saver):
            return train(loop)
    finally:
        writer.close()


def _record_of(setup: RunSetup) -> RunRecord:
    """What run.json says of this run, with a progress of its own for the loop to move on."""
    identity = identity_to_record(setup.identity, setup.start) if _is_rank_zero() else setup.identity
    return RunRecord(
        progress=dataclasses.replace(setup.start.progress),
        identity=identity,
        identity_version=IDENTITY_VERSION,
        layout=layout_of(setup.arguments, setup.device.kind),
        batch_sizes=list(setup.derived.length.batch_sizes),
        arguments=_plain(setup.arguments),
        versions=setup.every_rank[torch.distributed.get_rank()].versions,
    )


def _say_on_rank_zero(text: str) -> None:
    if torch.distributed.get_rank() == 0:
        say(text)


def _load(start: Start, state: TrainingState, arguments: PretrainArguments, vocabulary: Vocabulary) -> None:
    if start.folder is None:
        return
    if start.record is None or (start.kind == "load" and start.progress == Progress()):
        shape = None
        if holds_rank_files(start.folder):  # they do not say what the model looks like
            shape = config_of_run(arguments, vocabulary.size, None, f"--load {start.folder}")
        load_weights(start.folder, state, shape)
    else:
        load_training_state(start.folder, state, optimizer=start.optimizer, rng=start.rng)


def vocabulary_of(datasets: Datasets, tokenizer: Tokenizer | None) -> int | None:
    """Tokens that the tokenizer can give: the command's own, or the one the data was made with."""
    if tokenizer is not None:
        return tokenizer.vocab_size
    sizes = [files.manifest.tokenizer.vocab_size for files in datasets.files if files.manifest is not None]
    return max(sizes, default=None)


def _description(setup: RunSetup, job: Job) -> str:
    """What a person wants to read before the first step."""
    arguments, datasets = setup.arguments, setup.datasets
    derived, start, every_rank = setup.derived, setup.start, setup.every_rank
    length, attention = derived.length, derived.attention
    assert attention is not None
    own = sum(parameter.numel() for chunk in job.chunks for parameter in chunk.parameters())
    data = (
        f"{len(datasets.train):,} {datasets.kind.name} to train on, {len(datasets.valid or ()):,} held out; "
        f"an epoch is {length.epoch_length / arguments.global_batch_size:.1f} iterations of "
        f"{arguments.global_batch_size}, the run {length.iterations:,} iterations"
    )
    batch = batch_notice(arguments, start, length.batch_sizes)
    return named_values(
        [
            ("start", start.reason if batch is None else f"{start.reason}; {batch}"),
            ("machines", machine_lines(every_rank)),
            ("layout", layout_words(arguments, own)),
            ("versions", version_lines(every_rank)),
            ("attention", f"{attention.kernel.name}: {attention.reason}"),
            ("operators", str(derived.operators)),
            ("data", data),
        ]
    )


def _plain(arguments: PretrainArguments) -> dict[str, Any]:
    """All arguments as plain values, by group."""
    values = dataclasses.asdict(arguments)
    values["given"] = sorted(arguments.given)
    return values


def _is_rank_zero() -> bool:
    return torch.distributed.get_rank() == 0 and parallel_state.model_parallel_is_initialized()
