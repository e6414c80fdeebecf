"""Writing a checkpoint: beside, sealed with hashes, renamed, then made the newest.

A save goes through these stages; stopped at any of them, the folder holds a whole checkpoint to go on from:

    iter_N.saving/   every rank writes its shards, then rank 0 run.json
    files.json       size and SHA-256 of every file, all flushed to the disk
    iter_N           by renaming; an older one of that name steps aside as iter_N.replaced until then
    tracker          names N
    --keep-last      older ones are renamed to iter_M.removing, then removed

What goes wrong on one rank (a full disk, above all) is raised on every rank, as SaveError.
"""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest, TemporalAsyncCaller
from torch.distributed.checkpoint.api import CheckpointException

from mindspeed_llm.checkpoints.integrity import seal_checkpoint
from mindspeed_llm.checkpoints.metadata import RunMetadata
from mindspeed_llm.checkpoints.run_checkpoints import RunCheckpoints
from mindspeed_llm.checkpoints.training_state import (
    TrainingState,
    get_rng_state,
    sharded_optimizer,
    sharded_rng_state,
    sharded_weights,
)
from mindspeed_llm.conversion import ModelAssets
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.launcher_environment import read_launcher_environment
from mindspeed_llm.storage.atomic_write import flush_folder
from mindspeed_llm.storage.checkpoint_directory import CARRIED
from mindspeed_llm.storage.disk_errors import check_free_space, format_free_space

# Left free beside the tensors: index, record and hashes.
_MARGIN_BYTES = 1 << 20


class SaveError(CheckpointError):
    """A checkpoint could not be written; the ones before it are untouched."""


@dataclass
class PendingSave:
    """A save whose shards are being written, perhaps in another process.

    Attributes:
        folder: of the run.
        iteration: which checkpoint.
        saving: where it is written.
        request: megatron-core's part of it.
        keep_last: how many checkpoints stay; None keeps all.
        identity: of this run; --keep-last removes its own checkpoints alone.
        caller: the writing process, with --async-save.
    """

    folder: RunCheckpoints
    iteration: int
    saving: Path
    request: AsyncRequest
    keep_last: int | None
    identity: dict[str, Any]
    caller: TemporalAsyncCaller | None = None

    def done(self, wait: bool) -> bool:
        """Whether every rank's shards are written; True also where writing failed. Collective."""
        return self.caller is None or bool(self.caller.is_current_async_call_done(blocking=wait))

    def abandon(self) -> None:
        """Stop the writing process: this save will not be finished."""
        process = self.caller.process if self.caller is not None else None
        if self.caller is not None and process is not None:
            self.caller.close(abort=True)
            process.join()

    def finish(self) -> None:
        """Seal what was written and make it the newest. Collective.

        Raises:
            SaveError: it was not written whole.
        """
        if self.caller is None:
            _on_all_ranks(lambda: _write_now(self.request), self.saving)
        for finalize in self.request.finalize_fns:
            _on_all_ranks(finalize, self.saving)
        _on_all_ranks(lambda: seal_checkpoint(self.saving), self.saving)
        _on_rank_zero(self._publish, self.saving)

    def _publish(self) -> None:
        flush_folder(self.saving)
        self.folder.publish(self.saving, self.iteration)
        if self.keep_last is not None:
            self.folder.prune(self.keep_last, self.identity)


def begin_save(
    folder: RunCheckpoints,
    state: TrainingState,
    record: RunMetadata,
    keep_last: int | None = None,
    asynchronous: bool = False,
    assets: ModelAssets | None = None,
) -> PendingSave:
    """Begin a save. With `asynchronous` the shards are written by a process of their own while training goes on:
    it has the tensors as they are now. `assets` (on rank 0) go into hugging_face/. Collective.

    Raises:
        SaveError: the folder cannot be written to, or has no room, or the optimizer's state would be saved wrongly.
    """
    iteration = record.progress.iteration
    saving = folder.saving_path(iteration)
    state.finish_gathering()
    contents = sharded_weights(state)
    if record.has_optimizer:
        _on_all_ranks(lambda: contents.update(sharded_optimizer(state, contents, is_loading=False)), saving)
    if record.has_rng:
        contents.update(sharded_rng_state(get_rng_state()))
    needed = torch.tensor([float(_bytes_to_write(contents))])
    torch.distributed.all_reduce(needed)

    def prepare() -> None:
        folder.clear_leftovers()
        saving.mkdir(parents=True)
        check_free_space(saving, int(needed) + _MARGIN_BYTES)

    _on_rank_zero(prepare, saving)
    _provide_results_queue(asynchronous)
    _forget_results()
    request = dist_checkpointing.save(contents, str(saving), async_sharded_save=True)

    def describe() -> None:
        record.write(saving)  # now: while training goes on the record does
        if assets is not None:
            (saving / CARRIED).mkdir()
            assets.write(saving / CARRIED)

    _on_rank_zero(describe, saving)
    pending = PendingSave(folder, iteration, saving, request, keep_last, record.identity)
    if asynchronous:
        pending.caller = TemporalAsyncCaller()
        pending.caller.schedule_async_call(request)
    return pending


def _provide_results_queue(asynchronous: bool) -> None:
    """Give megatron-core's writer the queue in which it returns what was written.

    An asynchronous save writes in a forked process and needs a queue between processes, which megatron-core serves
    from a further process. A synchronous save writes in this process, where a plain queue does the same; the server
    would import torch for each rank: two seconds of processor time and 270 MB of memory.

    A scheduler may send SIGTERM to every process of a job, and the last save still needs the server, so the server
    blocks the signals that end a run: what is blocked here stays blocked in a process started from here.
    """
    if not asynchronous:
        filesystem_async._results_queue = filesystem_async._results_queue or queue.Queue()
        return
    if isinstance(filesystem_async._results_queue, queue.Queue):
        filesystem_async._results_queue = None
    if filesystem_async._results_queue is not None:
        return
    resource_tracker.ensure_running()  # starting it later would unblock these signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        filesystem_async._get_write_results_queue()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget_results() -> None:
    """Empty megatron-core's queue of what was written, which all saves of this process share.

    A save that was abandoned, or that failed on another rank, leaves its results there; they would become the index of
    the next one.
    """
    results = filesystem_async._get_write_results_queue()
    with contextlib.suppress(queue.Empty):
        while True:
            results.get_nowait()


def _write_now(request: AsyncRequest) -> None:
    arguments = list(request.async_fn_args)
    if request.preload_fn is not None:
        arguments[1] = request.preload_fn()  # the tensors, copied to the host
    if request.async_fn is not None:
        request.async_fn(*arguments, **request.async_fn_kwargs)


def _bytes_to_write(contents: Any) -> int:
    """Bytes of this rank's shards, those left out that another rank writes."""
    if isinstance(contents, dict):
        return sum(_bytes_to_write(value) for value in contents.values())
    if isinstance(contents, list | tuple):
        return sum(_bytes_to_write(value) for value in contents)
    data = getattr(contents, "data", contents)
    replica = getattr(contents, "replica_id", 0)
    is_main = not any(replica) if isinstance(replica, tuple) else replica == 0
    return data.numel() * data.element_size() if is_main and isinstance(data, torch.Tensor) else 0


def _on_rank_zero(work: Callable[[], None], saving: Path) -> None:
    _on_all_ranks(work if torch.distributed.get_rank() == 0 else lambda: None, saving)


def _on_all_ranks(work: Callable[[], None], saving: Path) -> None:
    """Run `work` everywhere; what fails on one rank fails on all, so that none waits for the other. Collective."""
    failure: str | None = None
    try:
        work()
    except (CheckpointException, Exception) as error:  # torch's is no subclass of Exception
        failure = f"rank {read_launcher_environment().rank}: {_cause(error)}"
    failures: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(failures, failure)
    said = [one for one in failures if one is not None]
    if said:
        raise SaveError(
            f"{saving}: could not be written ({said[0]}; {format_free_space(saving.parent)}); checkpoints before it "
            "are untouched"
        )


def _cause(error: BaseException) -> str:
    """What a person wants to read of an error that megatron-core has wrapped."""
    while error.__cause__ is not None:
        error = error.__cause__
    inner = getattr(error, "failures", None)
    if inner:
        wrapped = next(iter(inner.values()))
        error = wrapped[0] if isinstance(wrapped, tuple) else wrapped
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
