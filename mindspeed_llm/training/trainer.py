"""Run the training loop: steps, log lines, evaluations and checkpoints, until the run is complete or stopped."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging

from mindspeed_llm.arguments.training_arguments import TrainingArguments
from mindspeed_llm.checkpoints import TrainingProgress
from mindspeed_llm.data import MicroBatch, TokenDataLoader, prefetch
from mindspeed_llm.errors import DataError, UserError
from mindspeed_llm.training.checkpointer import Checkpointer
from mindspeed_llm.training.flops import layer_flops, output_flops, peak_flops
from mindspeed_llm.training.metrics_writer import MetricsWriter, eval_lines, perplexity, source_figures, train_line
from mindspeed_llm.training.model_and_optimizer import ModelAndOptimizer
from mindspeed_llm.training.nonfinite import gather_sample_ids, save_nonfinite_batch
from mindspeed_llm.training.run_clock import RunClock
from mindspeed_llm.training.run_pictures import RunPictures
from mindspeed_llm.training.run_setup import RunSetup
from mindspeed_llm.training.signals import StopRequest
from mindspeed_llm.training.train_step import BatchTotals, SourceTotals, StepResult, evaluate, train_step

logger = logging.getLogger(__name__)

NO_TOTALS = BatchTotals(0, 0, 0, 0, 0, 0)


@dataclass
class Interval:
    """Sums since the last log line.

    Attributes:
        totals: sums of the global batches, without bad steps.
        seconds: duration of the steps.
        flops: floating-point operations of the layers of one model replica.
        steps: number of steps, including bad steps.
    """

    totals: BatchTotals = NO_TOTALS
    seconds: float = 0.0
    flops: float = 0.0
    steps: int = 0


@dataclass
class Trainer:
    """Trains the model on this rank. All methods are collective.

    Attributes:
        setup: arguments, device, derived settings and run directory.
        model_and_optimizer: model, optimizer and learning rate schedule.
        dataloaders: dataloaders by split: 'train', and 'valid' and 'test' if they have packs.
        progress: progress of the run; advances with each step.
        writer: writer of metrics.
        checkpointer: writer of checkpoints.
        stopping: records a signal that asks the run to stop.
        pictures: draws loss.png during the run.
        interval: sums since the last log line.
        bad_steps: number of bad steps since this start: steps whose loss or gradient is not finite (--skip-bad-steps).
    """

    setup: RunSetup
    model_and_optimizer: ModelAndOptimizer
    dataloaders: dict[str, TokenDataLoader[Any]]
    progress: TrainingProgress
    writer: MetricsWriter
    checkpointer: Checkpointer
    stopping: StopRequest
    pictures: RunPictures
    interval: Interval = field(default_factory=Interval)
    bad_steps: int = 0

    def __post_init__(self) -> None:
        self.clock = RunClock(self.setup.derived.length.iterations, self.progress.iteration)

    def train(self) -> bool:
        """Train until the run is complete or a signal asks it to stop.

        After a signal, the current step is finished and a checkpoint is saved.

        Returns:
            True if the run is complete, False if it was stopped.

        Raises:
            DataError: a pack is invalid, or a loss or gradient is not finite. The model was not updated with it.
            SaveError: the final checkpoint could not be written.
            LeaseLostError: another run has taken over an output directory.
        """
        progress, iterations = self.progress, self.setup.derived.length.iterations
        batch_size = self.setup.derived.global_batch_size
        if progress.iteration == 0:
            self._evaluate_and_call_back()
        # The global batch size is constant from this start on; a change of it needs a new start.
        remaining = iterations - progress.iteration
        starts = range(progress.consumed_samples, progress.consumed_samples + remaining * batch_size, batch_size)
        # Iteration of the last checkpoint, so that the end of the run does not save the same iteration again.
        saved = progress.iteration
        is_last = False
        # A thread prepares the next global batch during the step. Closing the generator waits for that thread, so that
        # it does not read packs after an error.
        steps = prefetch(lambda start: _micro_batches(self.dataloaders["train"], start), starts)
        with contextlib.closing(steps):
            for batches in steps:
                if (left := self._samples_in_next_step()) < batch_size:
                    logger.info(f"the last batch has {left} of {batch_size} packs: --train-epochs ends there")
                # A signal during the last step changes nothing: the run is complete.
                stopped = self.step(batches) and progress.iteration != iterations
                if stopped:
                    self.checkpointer.save_now(final=False)
                    return False
                is_last = progress.iteration == iterations
                improved = self._evaluate_if_due(is_last)
                is_last = is_last or self._stops_early()
                # At every step, so that an asynchronous save is published soon after its files are written.
                self.checkpointer.poll()
                if not is_last and self._save_if_due(improved):
                    saved = progress.iteration
                if is_last:
                    break
        if saved != progress.iteration:
            self.checkpointer.save_now(final=True)
        # After the final checkpoint, so that an interrupted evaluation does not lose the end of the run.
        self.evaluate("test")
        return True

    def _evaluate_if_due(self, is_last: bool) -> bool:
        """Evaluate if the iteration is due or the last one; return whether the held-out loss is the lowest so far."""
        if not (_is_due(self.progress.iteration, self.setup.arguments.training.eval_interval) or is_last):
            return False
        loss = self._evaluate_and_call_back()
        self.pictures.update()
        return loss is not None and self.progress.note_evaluation(loss)

    def _stops_early(self) -> bool:
        """Return whether --early-stopping ends the run now, and say so."""
        line = early_stop_line(self.setup.arguments.training, self.progress)
        if line is not None and self.progress.iteration != self.setup.derived.length.iterations:
            logger.info(line)
        return line is not None

    def _save_if_due(self, improved: bool) -> bool:
        """Save a checkpoint if the iteration is due or --best-checkpoint asks for it; return whether it was saved."""
        flags = self.setup.arguments.checkpoint
        is_due = _is_due(self.progress.iteration, flags.save_interval)
        if not is_due and not (improved and flags.best_checkpoint):
            return False
        self.checkpointer.save_during_training(only_best=not is_due)
        self.pictures.update()
        return True

    def step(self, batches: Sequence[MicroBatch]) -> bool:
        """Train on one global batch and log it.

        Args:
            batches: micro-batches of this rank.

        Returns:
            Whether any rank was asked to stop.

        Raises:
            DataError: the loss or gradient is not finite, and --skip-bad-steps does not allow another bad step.
        """
        progress, model_and_optimizer, arguments = self.progress, self.model_and_optimizer, self.setup.arguments
        # Read before the schedule advances: the learning rate that this step uses.
        learning_rate = get_canonical_lr_for_logging(model_and_optimizer.optimizer.param_groups) or 0.0
        start_time = time.perf_counter()
        result = train_step(
            model_and_optimizer, batches, self.setup.device.torch_device, stop=self.stopping.signal is not None
        )
        seconds = time.perf_counter() - start_time
        # Also for a bad step: progress counts it, so that a resumed run does not read its packs again.
        samples = self._samples_in_next_step()
        progress.iteration += 1
        progress.consumed_samples += samples
        if not result.updated:
            progress.skipped_iterations += 1
            progress.skipped_samples += samples
        model_and_optimizer.scheduler.follow(progress)
        if result.bad:
            self._handle_bad_step(batches, result)
        elif not result.updated:
            logger.info(f"iteration {progress.iteration}: {_reason_not_updated(result)}; nothing was updated")
        interval = self.interval
        # The loss of a bad step may be NaN, which would make the sums of the complete interval NaN.
        interval.totals += NO_TOTALS if result.bad else result.totals
        interval.seconds += seconds
        interval.steps += 1
        adapter = self.model_and_optimizer.adapter
        interval.flops += sum(layer_flops(arguments.model, batch.actual_seq_len, adapter) for batch in batches)
        self.writer.advance(progress.iteration)
        self.clock.advance(progress.iteration)
        is_last = progress.iteration == self.setup.derived.length.iterations
        if _is_due(progress.iteration, self.setup.derived.log_interval) or is_last:
            self._log_interval(learning_rate, result)
            self.interval = Interval()
        return result.stop

    def evaluate(self, split: str) -> float | None:
        """Log loss and perplexity on the first --eval-iters global batches of a split, if the split exists.

        Args:
            split: 'valid' or 'test'.

        Returns:
            The loss, the same on all ranks; None if the split does not exist.
        """
        dataloader, limit = self.dataloaders.get(split), self.setup.arguments.training.eval_iters
        if dataloader is None or limit == 0:
            return None
        batch_size = self.setup.derived.global_batch_size
        batches_in_split = math.ceil(len(dataloader.dataset) / batch_size)
        sources = dataloader.dataset.sources
        totals, by_source = NO_TOTALS, SourceTotals(np.zeros(len(sources)), np.zeros(len(sources)))
        for index in range(min(limit, batches_in_split)):
            batches = _micro_batches(dataloader, index * batch_size)
            added = evaluate(self.model_and_optimizer, batches, self.setup.device.torch_device, sources)
            totals, by_source = totals + added[0], by_source + added[1]
        values: dict[str, Any] = {
            "iteration": self.progress.iteration,
            "split": split,
            "loss": totals.mean_loss,
            "perplexity": perplexity(by_source.loss.sum(), by_source.tokens.sum()),
            "trained_tokens": int(totals.trained_tokens),
        }
        if len(sources) > 1:
            values["sources"] = {
                source: source_figures(loss, tokens)
                for source, loss, tokens in zip(sources, by_source.loss, by_source.tokens, strict=True)
            }
        self.writer.record("eval", values)
        logger.info("\n".join(eval_lines(values)))
        return totals.mean_loss

    def _evaluate_and_call_back(self) -> float | None:
        """Evaluate on the validation split, and run the callback of the entry point; either may be missing.

        Returns:
            The loss; None without validation data.
        """
        loss = self.evaluate("valid")
        callback = self.setup.on_evaluation
        if callback is None:
            return loss
        note = callback(self.model_and_optimizer.chunks, self.setup.device.torch_device, self.progress.iteration)
        if note is not None:
            self.writer.record(note.kind, note.values)
            self.writer.append(note.file_name, note.lines)
            logger.info(note.log_line)
        return loss

    def _samples_in_next_step(self) -> int:
        """Return the number of packs in the next step: a global batch, or the smaller last batch of --train-epochs."""
        batch_size, end = self.setup.derived.global_batch_size, self.dataloaders["train"].end
        return batch_size if end is None else min(batch_size, end - self.progress.consumed_samples)

    def _handle_bad_step(self, batches: Sequence[MicroBatch], result: StepResult) -> None:
        """Save the batch of a bad step to the run directory, then continue or stop the run.

        Raises:
            DataError: --skip-bad-steps does not allow another bad step. Raised on every rank.
        """
        iteration = self.progress.iteration
        problem = f"iteration {iteration}: {result.bad}"
        # The batch is written to the run directory, which another run may have taken over.
        self.writer.check_lease()
        path = save_nonfinite_batch(self.setup.run_dir / "bad_steps", iteration, batches)
        packs = ", ".join(f"{prefix} {number}" for prefix, number in gather_sample_ids(batches))
        self.bad_steps += 1
        allowed = self.setup.arguments.training.skip_bad_steps
        if self.bad_steps <= allowed:
            logger.warning(
                f"{problem}; skipped, bad step {self.bad_steps} of {allowed} allowed. Packs: {packs} (batch: {path})"
            )
            return
        raise DataError(
            f"{problem}; training stopped before the update. Packs: {packs}. The batch is saved in {path}. "
            "Inspect it, lower --lr, or add --skip-bad-steps N to skip up to N such steps"
        )

    def _log_interval(self, learning_rate: float, last: StepResult) -> None:
        """Write the metrics of the interval that ends with this step."""
        interval, totals, arguments = self.interval, self.interval.totals, self.setup.arguments
        if not totals.slots:  # all steps of the interval were bad
            return
        peak = peak_flops(self.setup.device, arguments.training.precision)
        # An estimate: it assumes that every data-parallel replica had as many operations as this one.
        output_rows = totals.trained_tokens if self.setup.derived.loss.chunk_size else totals.slots
        flops = interval.flops * arguments.data_parallel_size
        flops += output_flops(
            arguments.model,
            self.model_and_optimizer.padded_vocab_size,
            output_rows,
            self.model_and_optimizer.adapter is not None,
        )
        model_flops_per_second = flops / interval.seconds / arguments.world_size
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
            "trained_share": totals.trained_tokens / totals.tokens if totals.tokens else 0.0,
            "tokens_per_second": totals.tokens / interval.seconds,
            "trained_tokens_per_second": totals.trained_tokens / interval.seconds,
            "model_tflops_per_device": model_flops_per_second / 1e12,
            **({"model_flops_utilisation": model_flops_per_second / peak} if peak else {}),
            "peak_memory_bytes": self.setup.device.peak_memory_bytes(),
            "step_seconds": interval.seconds / interval.steps,
            "steps": interval.steps,
            "elapsed_seconds": self.clock.elapsed,
            "remaining_seconds": self.clock.remaining(self.progress.iteration),
        }
        self.writer.record("train", values)
        logger.info(train_line(values, self.setup.derived.length.iterations))


def _micro_batches(dataloader: TokenDataLoader[Any], start: int) -> list[MicroBatch]:
    """Return this rank's micro-batches of one global batch."""
    try:
        # A list, so that the prefetch thread does all the reading and not the training step.
        return list(dataloader.micro_batches(start))
    except UserError as error:
        # Other ranks read other packs and may not have this error, so this rank must print it.
        error.on_one_rank = True
        raise


def early_stop_line(training: TrainingArguments, progress: TrainingProgress) -> str | None:
    """Return the line which says that --early-stopping has ended the run; None if it has not.

    Args:
        training: flags of the training.
        progress: progress of the run.
    """
    allowed = training.early_stopping
    if allowed is None or progress.evaluations_since_best < allowed:
        return None
    best = "no evaluation had a finite held-out loss"
    if progress.best_loss is not None:
        best = f"the lowest is {progress.best_loss:.6f} after iteration {progress.best_iteration}"
    return (
        f"--early-stopping {allowed}: the run ends after iteration {progress.iteration}, because "
        f"{progress.evaluations_since_best} evaluations had no lower held-out loss; {best}"
    )


def _is_due(iteration: int, interval: int | None) -> bool:
    return interval is not None and iteration % interval == 0


def _reason_not_updated(result: StepResult) -> str:
    if not result.totals.denominator:
        return "no token of its global batch is trained"
    return f"its gradient overflowed at a loss scale of {result.loss_scale:,.0f}"
