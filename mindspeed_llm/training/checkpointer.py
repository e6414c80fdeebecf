"""Checkpoints in the course of a run: on the way, in another process if asked for, and at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from mindspeed_llm.arguments.output_arguments import CheckpointArguments
from mindspeed_llm.checkpoints import PendingSave, RunCheckpoints, RunMetadata, SaveError, begin_save
from mindspeed_llm.conversion import ModelAssets
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer
from mindspeed_llm.training.rank_zero import run_on_rank_zero

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves to --save; does nothing without it. All methods are collective.

    Args:
        checkpoint: the flags.
        model_and_optimizer: what is saved.
        record: what is written beside it; its progress is the loop's.
        check_lease: raises LeaseLostError if another run has taken --save over; called on rank 0.
        assets: config, tokenizer and chat template of the model, on rank 0; None for a model without config.json.
    """

    def __init__(
        self,
        checkpoint: CheckpointArguments,
        model_and_optimizer: ModelAndOptimizer,
        record: RunMetadata,
        check_lease: Callable[[], None],
        assets: ModelAssets | None = None,
    ) -> None:
        self._flags = checkpoint
        self._model_and_optimizer = model_and_optimizer
        self._record = record
        self._check_lease = check_lease
        self._assets = assets
        self._pending: PendingSave | None = None

    def save_at_interval(self) -> None:
        """Save now, or with --async-save begin to. A disk that is full, or the like, does not end the run."""
        try:
            self._begin(self._flags.async_save)
            if not self._flags.async_save:
                self._finish()
        except SaveError as error:
            self._complain(error)

    def poll(self) -> None:
        """Make a save the newest if its files are written by now."""
        if self._pending is not None and self._pending.done(wait=False):
            try:
                self._finish()
            except SaveError as error:
                self._complain(error)

    def save_now(self, final: bool) -> None:
        """Save and wait for it.

        Args:
            final: the run is complete: --no-save-optim and --no-save-rng count.

        Raises:
            SaveError: it could not be written.
        """
        self._begin(False, final)
        self._finish()

    def close(self) -> None:
        """Stop a save that is still being written by another process: the run ends without it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.abandon()

    def _begin(self, asynchronous: bool, final: bool = False) -> None:
        if self._flags.save is None:
            return
        run_on_rank_zero(self._check_lease)
        if self._pending is not None:  # the one before took longer than --save-interval
            try:
                self._finish()
            except SaveError as error:
                self._complain(error)
        record = self._record
        record.has_optimizer = not (final and self._flags.no_save_optim)
        record.has_rng = not (final and self._flags.no_save_rng)
        record.scheduler = self._model_and_optimizer.scheduler.state_dict()
        folder = RunCheckpoints(Path(self._flags.save))
        self._pending = begin_save(
            folder, self._model_and_optimizer.state, record, self._flags.keep_last, asynchronous, self._assets
        )

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.done(wait=True)
            run_on_rank_zero(self._check_lease)  # its shards may have taken long
            pending.finish()

    def _complain(self, error: SaveError) -> None:
        bar = "!" * 100
        logger.error(f"{bar}\nNOT SAVED: {error}\ntraining goes on without this checkpoint\n{bar}")
