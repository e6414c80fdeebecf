"""The training loop: steps, log lines, evaluations and checkpoints, until the run has its length or is stopped."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging

from mindspeed_llm.checkpoints import TrainingProgress
from mindspeed_llm.data import MicroBatch, PackedDataLoader, prefetch
from mindspeed_llm.errors import DataError, UserError
from mindspeed_llm.training.checkpointer import Checkpointer
from mindspeed_llm.training.flops import model_flops, peak_flops
from mindspeed_llm.training.metrics_writer import MetricsWriter, eval_line, train_line
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer
from mindspeed_llm.training.nonfinite import gather_sample_ids, save_nonfinite_batch
from mindspeed_llm.training.run_setup import RunSetup
from mindspeed_llm.training.signals import StopRequest
from mindspeed_llm.training.train_step import BatchTotals, StepResult, evaluate, train_step

logger = logging.getLogger(__name__)

NO_TOTALS = BatchTotals(0, 0, 0, 0, 0, 0)


@dataclass
class Interval:
    """Sums since the last line."""

    totals: BatchTotals = NO_TOTALS
    seconds: float = 0.0
    flops: float = 0.0
    steps: int = 0


@dataclass
class Trainer:
    """Train one run on this rank. All methods are collective.

    Attributes:
        setup: arguments, device, derived settings and run folder.
        model_and_optimizer: model, optimizer and schedule.
        dataloaders: batch builders by split: 'train', and 'valid' and 'test' where there are any.
        progress: position of the run; advances with each step.
        writer: log lines and metrics.
        checkpointer: checkpoints.
        stopping: set by a signal that asks the run to end.
        interval: sums since the last log line.
        bad_steps: steps skipped so far because of a loss or gradient that is not finite (--skip-bad-steps).
    """

    setup: RunSetup
    model_and_optimizer: ModelAndOptimizer
    dataloaders: dict[str, PackedDataLoader]
    progress: TrainingProgress
    writer: MetricsWriter
    checkpointer: Checkpointer
    stopping: StopRequest
    interval: Interval = field(default_factory=Interval)
    bad_steps: int = 0

    def train(self) -> bool:
        """Train to the end, or until a signal asks for a stop: then the step is finished and a checkpoint written.

        Returns:
            True if the run is as long as it was asked to be, False if it was stopped.

        Raises:
            UserError: a pack that does not fit, or a loss that is not finite; nothing was updated with it.
        """
        progress, iterations = self.progress, self.setup.derived.length.iterations
        batch_size, save_interval = self.setup.derived.global_batch_size, self.setup.arguments.checkpoint.save_interval
        if progress.iteration == 0:
            self.evaluate("valid")
        remaining = iterations - progress.iteration
        starts = range(progress.consumed_samples, progress.consumed_samples + remaining * batch_size, batch_size)
        saved = progress.iteration
        steps = prefetch(lambda start: _micro_batches(self.dataloaders["train"], start), starts)
        with contextlib.closing(steps):
            for batches in steps:
                if (left := self._samples_of_step()) < batch_size:
                    logger.info(f"the last batch has {left} of {batch_size} packs: --train-epochs ends there")
                stopped = self.step(batches) and progress.iteration != iterations
                if stopped:
                    self.checkpointer.save_now(final=False)
                    return False
                is_last = progress.iteration == iterations
                if _due(progress.iteration, self.setup.arguments.training.eval_interval) or is_last:
                    self.evaluate("valid")
                self.checkpointer.poll()
                if _due(progress.iteration, save_interval) and not is_last:
                    self.checkpointer.save_at_interval()
                    saved = progress.iteration
        if saved != progress.iteration:
            self.checkpointer.save_now(final=True)
        self.evaluate("test")
        return True

    def step(self, batches: Sequence[MicroBatch]) -> bool:
        """Train on one global batch and log it. Returns whether any rank was asked to stop."""
        progress, model_and_optimizer, arguments = self.progress, self.model_and_optimizer, self.setup.arguments
        learning_rate = get_canonical_lr_for_logging(model_and_optimizer.optimizer.param_groups) or 0.0
        began = time.perf_counter()
        result = train_step(
            model_and_optimizer, batches, self.setup.device.torch_device, stop=self.stopping.signal is not None
        )
        seconds = time.perf_counter() - began
        samples = self._samples_of_step()
        progress.iteration += 1
        progress.consumed_samples += samples
        if not result.updated:
            progress.skipped_iterations += 1
            progress.skipped_samples += samples
        model_and_optimizer.scheduler.follow(progress)
        if result.bad:
            self._deal_with_bad_step(batches, result)
        elif not result.updated:
            logger.info(f"iteration {progress.iteration}: {_why_not_updated(result)}; nothing was updated")
        interval = self.interval
        interval.totals += NO_TOTALS if result.bad else result.totals
        interval.seconds += seconds
        interval.steps += 1
        interval.flops += sum(
            model_flops(arguments.model, model_and_optimizer.padded_vocab_size, batch.actual_seq_len)
            for batch in batches
        )
        self.writer.advance(progress.iteration)
        is_last = progress.iteration == self.setup.derived.length.iterations
        if _due(progress.iteration, arguments.logging.log_interval) or is_last:
            self._log(learning_rate, result)
            self.interval = Interval()
        return result.stop

    def evaluate(self, split: str) -> None:
        """Log the loss on the first --eval-iters global batches of a split, the same ones every time."""
        dataloader, limit = self.dataloaders.get(split), self.setup.arguments.training.eval_iters
        if dataloader is None or limit == 0:
            return
        batch_size = self.setup.derived.global_batch_size
        whole_split = math.ceil(len(dataloader.dataset) / batch_size)
        totals = NO_TOTALS
        for index in range(min(limit, whole_split)):
            totals += evaluate(
                self.model_and_optimizer, _micro_batches(dataloader, index * batch_size), self.setup.device.torch_device
            )
        values = {
            "iteration": self.progress.iteration,
            "split": split,
            "loss": totals.mean_loss,
            "trained_tokens": int(totals.trained_tokens),
        }
        self.writer.record("eval", values)
        logger.info(eval_line(values))

    def _samples_of_step(self) -> int:
        """Packs of the next step: a global batch, or what --train-epochs leaves of it."""
        batch_size, end = self.setup.derived.global_batch_size, self.dataloaders["train"].end
        return batch_size if end is None else min(batch_size, end - self.progress.consumed_samples)

    def _deal_with_bad_step(self, batches: Sequence[MicroBatch], result: StepResult) -> None:
        """Write the batch of a loss or gradient that is not finite to the run folder; then go on or stop.

        Raises:
            DataError: --skip-bad-steps allows no more of them. Every rank raises it; nothing was updated.
        """
        iteration = self.progress.iteration
        what = f"iteration {iteration}: {result.bad}"
        self.writer.check_lease()
        kept = save_nonfinite_batch(self.setup.run_dir / "bad_steps", iteration, batches)
        packs = ", ".join(f"{prefix} {number}" for prefix, number in gather_sample_ids(batches))
        self.bad_steps += 1
        allowed = self.setup.arguments.training.skip_bad_steps
        if self.bad_steps <= allowed:
            logger.warning(
                f"{what}; skipped, bad step {self.bad_steps} of {allowed} allowed. Packs: {packs} (kept: {kept})"
            )
            return
        raise DataError(
            f"{what}; training stopped before the update. Packs: {packs}. The batch is kept in {kept}. Look at it, "
            "lower --lr, or add --skip-bad-steps N to go on without such steps"
        )

    def _log(self, learning_rate: float, last: StepResult) -> None:
        """Write the figures of the interval that ends here."""
        interval, totals, arguments = self.interval, self.interval.totals, self.setup.arguments
        if not totals.slots:  # every step of it was skipped
            return
        peak = peak_flops(self.setup.device, arguments.training.precision)
        model_flops_per_second = interval.flops * arguments.data_parallel_size / interval.seconds / arguments.world_size
        values: dict[str, Any] = {
            "iteration": self.progress.iteration,
            "consumed_samples": self.progress.consumed_samples,
            "loss": totals.mean_loss,
            "learning_rate": learning_rate,
            "grad_norm": last.grad_norm,
            **({} if last.loss_scale is None else {"loss_scale": last.loss_scale}),
            "trained_tokens": int(totals.trained_tokens),
            "tokens": int(totals.tokens),
            "slots": int(totals.slots),
            "samples": int(totals.samples),
            "fill": totals.tokens / totals.slots,
            "tokens_per_second": totals.tokens / interval.seconds,
            "trained_tokens_per_second": totals.trained_tokens / interval.seconds,
            "model_tflops_per_device": model_flops_per_second / 1e12,
            **({"model_flops_utilisation": model_flops_per_second / peak} if peak else {}),
            "peak_memory_bytes": self.setup.device.peak_memory_bytes(),
            "step_seconds": interval.seconds / interval.steps,
        }
        self.writer.record("train", values)
        logger.info(train_line(values, self.setup.derived.length.iterations))


def _micro_batches(dataloader: PackedDataLoader, start: int) -> list[MicroBatch]:
    """This rank's micro-batches of one global batch. An error in them is this rank's own: others read other packs."""
    try:
        return list(dataloader.micro_batches(start))
    except UserError as error:
        error.on_one_rank = True
        raise


def _due(iteration: int, interval: int | None) -> bool:
    return interval is not None and iteration % interval == 0


def _why_not_updated(result: StepResult) -> str:
    if not result.totals.denominator:
        return "no token of its global batch is trained"
    return f"its gradient overflowed at a loss scale of {result.loss_scale:,.0f}"
