"""Save a checkpoint: write it to a temporary directory, seal it with hashes, rename it, and update the tracker.

If a save is interrupted at any of these stages, the directory still contains a complete checkpoint to resume from:

    iter_N.saving/   rank 0 writes run.json, every rank writes its shards
    files.json       size and SHA-256 of every file; all files are flushed to the disk
    iter_N           the directory is renamed; an older one with this name is renamed to iter_N.replaced before
    tracker          names N
    --keep-last      older checkpoints are renamed to iter_M.removing, then removed

An error on one rank, such as a full disk, is raised on every rank as SaveError.
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
from mindspeed_llm.conversion.distributed_checkpoint import MEGATRON_VERSION
from mindspeed_llm.errors import CheckpointError
from mindspeed_llm.launcher_environment import read_launcher_environment
from mindspeed_llm.storage.atomic_write import flush_folder
from mindspeed_llm.storage.checkpoint_directory import CARRIED
from mindspeed_llm.storage.disk_errors import check_free_space, format_free_space

# Free space required in addition to the tensors, for the index, the metadata and the hashes.
_MARGIN_BYTES = 1 << 20


class SaveError(CheckpointError):
    """A checkpoint could not be written. Earlier checkpoints are unchanged."""


@dataclass
class PendingSave:
    """A save in progress, whose shards may be written by another process.

    Attributes:
        folder: checkpoint directory of the run.
        iteration: number of the checkpoint.
        saving: temporary directory to which it is written.
        request: megatron-core's functions that write and finalize the shards.
        keep_last: number of checkpoints to keep; None keeps all.
        identity: identity of this run, because --keep-last removes only its own checkpoints.
        caller: handle of the writing process with --async-save; None if this process writes.
        keep_best: whether the checkpoint with the lowest held-out loss stays (--best-checkpoint).
    """

    folder: RunCheckpoints
    iteration: int
    saving: Path
    request: AsyncRequest
    keep_last: int | None
    identity: dict[str, Any]
    caller: TemporalAsyncCaller | None = None
    keep_best: bool = False

    def done(self, wait: bool) -> bool:
        """Return whether the writing processes of all ranks have ended, also if writing failed. Collective.

        Args:
            wait: whether to wait for them.
        """
        return self.caller is None or bool(self.caller.is_current_async_call_done(blocking=wait))

    def abandon(self) -> None:
        """Stop the writing process. This save will not be finished; the next one removes its directory."""
        process = self.caller.process if self.caller is not None else None
        if self.caller is not None and process is not None:
            self.caller.close(abort=True)
            # close() only sends the signal. Until the process has ended it may still write to the directory.
            process.join()

    def finish(self) -> None:
        """Seal the written checkpoint, publish it as the newest, and apply --keep-last. Collective.

        Without --async-save this also writes the shards.

        Raises:
            SaveError: The checkpoint could not be written completely, on any rank.
        """
        # Each step must have succeeded on all ranks before the next one: a checkpoint is sealed only with the shards of
        # all ranks and the index, and gets its final name only when it is sealed.
        if self.caller is None:
            _on_all_ranks(lambda: _write_now(self.request), self.saving)
        for finalize in self.request.finalize_fns:
            _on_all_ranks(finalize, self.saving)
        _on_all_ranks(lambda: seal_checkpoint(self.saving), self.saving)
        _on_rank_zero(self._publish, self.saving)

    def _publish(self) -> None:
        # The names of the files must be on the disk before the directory gets the name of a complete checkpoint.
        flush_folder(self.saving)
        self.folder.publish(self.saving, self.iteration)
        # Last, so that a save that fails before has removed nothing.
        if self.keep_best:
            self.folder.remove_superseded(self.identity)
        if self.keep_last is not None:
            self.folder.prune(self.keep_last, self.identity, self.keep_best)


def begin_save(
    folder: RunCheckpoints,
    state: TrainingState,
    metadata: RunMetadata,
    keep_last: int | None = None,
    asynchronous: bool = False,
    assets: ModelAssets | None = None,
    keep_best: bool = False,
) -> PendingSave:
    """Begin a save, to be completed with `PendingSave.finish`. Collective.

    Args:
        folder: checkpoint directory of the run.
        state: model and optimizer to save.
        metadata: content of run.json. It also specifies whether the optimizer state and the RNG states are saved.
        keep_last: number of checkpoints to keep; None keeps all.
        asynchronous: whether a forked process writes the shards while training continues. It has a copy of the tensors
            as they are now.
        assets: config, tokenizer and generation settings to write to hugging_face/; used on rank 0 only.
        keep_best: whether the checkpoint with the lowest held-out loss stays, whatever `keep_last` is.

    Returns:
        The save in progress.

    Raises:
        SaveError: The directory is not writable, the free space is too small, or the optimizer state would be saved
            incorrectly.
    """
    iteration = metadata.progress.iteration
    saving = folder.saving_path(iteration)
    state.finish_gathering()
    contents = sharded_weights(state)
    contents.update(MEGATRON_VERSION)
    if metadata.has_optimizer:
        # On all ranks: devices/bucket_padding.py may raise an error on one rank only.
        _on_all_ranks(lambda: contents.update(sharded_optimizer(state, contents, is_loading=False)), saving)
    if metadata.has_rng:
        contents.update(sharded_rng_state(get_rng_state()))
    needed = torch.tensor([float(_bytes_to_write(contents))])
    torch.distributed.all_reduce(needed)

    def prepare() -> None:
        # First, because leftovers of an interrupted save occupy the space that this one needs.
        folder.clear_leftovers()
        saving.mkdir(parents=True)
        check_free_space(saving, int(needed) + _MARGIN_BYTES)

    _on_rank_zero(prepare, saving)
    _provide_results_queue(asynchronous)
    _discard_old_results()
    # Always an asynchronous request, also for a synchronous save: `finish` then controls when and in which process the
    # shards are written, and reports errors on all ranks.
    request = dist_checkpointing.save(contents, str(saving), async_sharded_save=True)

    def describe() -> None:
        # Now and not in `finish`: during an asynchronous save training continues and changes this object.
        metadata.write(saving)
        if state.adapter is not None:
            state.adapter.write(saving)
        if assets is not None:
            (saving / CARRIED).mkdir()
            assets.write(saving / CARRIED)

    _on_rank_zero(describe, saving)
    pending = PendingSave(folder, iteration, saving, request, keep_last, metadata.identity, keep_best=keep_best)
    if asynchronous:
        pending.caller = TemporalAsyncCaller()
        pending.caller.schedule_async_call(request)
    return pending


def _provide_results_queue(asynchronous: bool) -> None:
    """Create the queue in which megatron-core's writer returns the locations of what it has written."""
    if not asynchronous:
        # This process writes, so a plain queue is enough. megatron-core would start a server process for the queue,
        # which imports torch: two seconds of processor time and 270 MB of memory for each rank.
        filesystem_async._results_queue = filesystem_async._results_queue or queue.Queue()
        return
    if isinstance(filesystem_async._results_queue, queue.Queue):
        # From a synchronous save. A forked process would put its results into its own copy of this queue.
        filesystem_async._results_queue = None
    if filesystem_async._results_queue is not None:
        return
    # Creating the server also starts multiprocessing's resource tracker if it is not running, and that would unblock
    # the signals that are blocked below.
    resource_tracker.ensure_running()
    # A scheduler may send SIGTERM to every process of a job, but the last save still needs the server. A new process
    # inherits the blocked signals of its parent, so these signals do not end the server.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        filesystem_async._get_write_results_queue()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _discard_old_results() -> None:
    """Empty megatron-core's result queue, which all saves of this process share.

    A save that was abandoned, or that failed on another rank, leaves its results in the queue. They would get into the
    index of the next save.
    """
    results = filesystem_async._get_write_results_queue()
    with contextlib.suppress(queue.Empty):
        while True:
            results.get_nowait()


def _write_now(request: AsyncRequest) -> None:
    """Write the shards of this rank in this process."""
    arguments = list(request.async_fn_args)
    if request.preload_fn is not None:
        # The second argument of megatron-core's writer is filled at this moment, with copies of the tensors on the
        # host; `TemporalAsyncCaller` does the same.
        arguments[1] = request.preload_fn()
    if request.async_fn is not None:
        request.async_fn(*arguments, **request.async_fn_kwargs)


def _bytes_to_write(contents: Any) -> int:
    """Return the number of bytes that this rank writes: its shards, without replicas that another rank writes."""
    if isinstance(contents, dict):
        return sum(_bytes_to_write(value) for value in contents.values())
    if isinstance(contents, list | tuple):
        return sum(_bytes_to_write(value) for value in contents)
    data = getattr(contents, "data", contents)
    replica = getattr(contents, "replica_id", 0)
    is_main = not any(replica) if isinstance(replica, tuple) else replica == 0
    return data.numel() * data.element_size() if is_main and isinstance(data, torch.Tensor) else 0


def _on_rank_zero(work: Callable[[], None], saving: Path) -> None:
    """Run `work` on rank 0, and raise SaveError on all ranks if it fails. Collective."""
    _on_all_ranks(work if torch.distributed.get_rank() == 0 else lambda: None, saving)


def _on_all_ranks(work: Callable[[], None], saving: Path) -> None:
    """Run `work` on every rank, and raise SaveError on all ranks if it fails on any. Collective.

    If only one rank raised the error, the others would wait for it in their next collective.
    """
    failure: str | None = None
    try:
        work()
    except (CheckpointException, Exception) as error:
        # Wide, because every error must reach the other ranks. torch's CheckpointException is not an Exception.
        failure = f"rank {read_launcher_environment().rank}: {_cause(error)}"
    failures: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(failures, failure)
    messages = [message for message in failures if message is not None]
    if messages:
        raise SaveError(
            f"{saving}: could not be written ({messages[0]}; {format_free_space(saving.parent)}); earlier checkpoints "
            "are unchanged"
        )


def _cause(error: BaseException) -> str:
    """Return type and message of the original error, which torch and megatron-core wrap several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    inner = getattr(error, "failures", None)
    if inner:
        wrapped = next(iter(inner.values()))
        error = wrapped[0] if isinstance(wrapped, tuple) else wrapped
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"
