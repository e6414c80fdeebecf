"""Save checkpoints during training: at intervals, asynchronously, and at the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.checkpoints import PendingSave, RunCheckpoints, RunMetadata, SaveError, begin_save
from mindspeed_llm.conversion import ModelAssets
from mindspeed_llm.training.checkpoint_exports import CheckpointExports
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer
from mindspeed_llm.training.rank_zero import run_on_rank_zero

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves checkpoints to --save; without that flag it does nothing. All methods are collective.

    Args:
        checkpoint: the checkpoint flags.
        model_and_optimizer: the state to save.
        record: the content of run.json. Its `progress` is the object that the trainer advances.
        check_lease: raises LeaseLostError if another run has taken over --save; called on rank 0 only.
        exports: exports checkpoints as Hugging Face folders (--save-hf-interval).
        assets: config, tokenizer and chat template of the model, on rank 0; None for a model without config.json.
    """

    def __init__(
        self,
        checkpoint: CheckpointArguments,
        model_and_optimizer: ModelAndOptimizer,
        record: RunMetadata,
        check_lease: Callable[[], None],
        exports: CheckpointExports,
        assets: ModelAssets | None = None,
    ) -> None:
        self._flags = checkpoint
        self._model_and_optimizer = model_and_optimizer
        self._record = record
        self._check_lease = check_lease
        self._exports = exports
        self._assets = assets
        self._begin_time = 0.0
        self._pending: PendingSave | None = None

    def save_during_training(self, only_best: bool = False) -> None:
        """Save a checkpoint during training; with --async-save, only start to write it.

        A save that fails, for example because the disk is full, is logged and does not end the run.

        Args:
            only_best: whether the checkpoint is saved only because its held-out loss is the lowest so far, and is to be
                removed when there is a better one.
        """
        try:
            self._begin(self._flags.async_save, only_best=only_best)
            if not self._flags.async_save:
                self._finish()
        except SaveError as error:
            self._log_failure(error)

    def poll(self) -> None:
        """Publish an asynchronous save if all ranks have written its files."""
        self._exports.poll()
        if self._pending is not None and self._pending.done(wait=False):
            try:
                self._finish()
            except SaveError as error:
                self._log_failure(error)

    def save_now(self, final: bool) -> None:
        """Save a checkpoint and wait until it is complete.

        Args:
            final: whether this is the last checkpoint of the run. Only that one may be saved without optimizer and
                RNG state (--no-save-optim, --no-save-rng); all others must allow a resume.

        Raises:
            SaveError: the checkpoint could not be written.
        """
        self._begin(False, final)
        self._finish()

    def close(self) -> None:
        """Abort an asynchronous save that is still being written; the run ends without that checkpoint."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.abandon()

    def _begin(self, asynchronous: bool, final: bool = False, only_best: bool = False) -> None:
        if self._flags.save is None:
            return
        run_on_rank_zero(self._check_lease)
        # The previous asynchronous save took longer than --save-interval. It must be complete before the next starts:
        # all saves share the result queue of megatron-core, and checkpoints are published in order.
        if self._pending is not None:
            try:
                self._finish()
            except SaveError as error:
                self._log_failure(error)
        self._begin_time = time.perf_counter()
        record = self._record
        record.only_best = only_best
        record.has_optimizer = not (final and self._flags.no_save_optim)
        record.has_rng = not (final and self._flags.no_save_rng)
        record.scheduler = self._model_and_optimizer.scheduler.state_dict()
        folder = RunCheckpoints(Path(self._flags.save))
        state, keep_best = self._model_and_optimizer.state, self._flags.best_checkpoint
        self._pending = begin_save(
            folder, state, record, self._flags.keep_last, asynchronous, self._assets, keep_best=keep_best
        )

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.done(wait=True)
            # Writing the shards can take minutes, in which another run may have taken over --save. This run must not
            # publish its checkpoint there.
            run_on_rank_zero(self._check_lease)
            # A checkpoint that is being exported must not be removed by --keep-last.
            self._exports.wait()
            pending.finish()
            folder = RunCheckpoints(Path(str(self._flags.save))).iteration_path(pending.iteration)
            logger.info(f"saved {folder} in {time.perf_counter() - self._begin_time:.1f} s")
            self._exports.prune()
            self._exports.start(pending.iteration)
            if not self._flags.async_save:
                self._exports.wait()

    def _log_failure(self, error: SaveError) -> None:
        bar = "!" * 100
        logger.error(f"{bar}\nNOT SAVED: {error}\ntraining continues without this checkpoint\n{bar}")
