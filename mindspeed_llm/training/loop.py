"""The one loop: steps, lines, evaluations and checkpoints until the run is as long as it was asked to be."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging

from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.checkpoints import Progress
from mindspeed_llm.data import Batch, BatchBuilder, prefetch
from mindspeed_llm.devices import Device
from mindspeed_llm.errors import DataError, UserError
from mindspeed_llm.training.bad_steps import all_sample_ids, keep_bad_batch
from mindspeed_llm.training.flops import model_flops, peak_flops
from mindspeed_llm.training.job import Job
from mindspeed_llm.training.metrics import MetricsWriter, eval_line, train_line
from mindspeed_llm.training.saver import Saver
from mindspeed_llm.training.step import StepResult, Totals, evaluate, train_step
from mindspeed_llm.training.stopping import StopRequest

NO_TOTALS = Totals(0, 0, 0, 0, 0, 0)


@dataclass
class Interval:
    """Sums since the last line."""

    totals: Totals = NO_TOTALS
    seconds: float = 0.0
    flops: float = 0.0
    steps: int = 0


@dataclass
class Loop:
    """A run in motion, on this rank.

    Attributes:
        arguments: checked arguments.
        job: what is trained.
        device: where.
        feeds: batch builders by split: 'train', and 'valid' and 'test' where there are any.
        progress: where the run stands; moves.
        iterations: steps of the whole run.
        writer: for lines and figures.
        run_dir: the run folder.
        save: writes checkpoints.
        stopping: told of a signal that asks the run to end.
        bad_steps: steps skipped so far because of a loss or gradient that is not finite (--skip-bad-steps).
    """

    arguments: PretrainArguments
    job: Job
    device: Device
    feeds: dict[str, BatchBuilder]
    progress: Progress
    iterations: int
    writer: MetricsWriter
    run_dir: Path
    save: Saver
    stopping: StopRequest
    interval: Interval = field(default_factory=Interval)
    bad_steps: int = 0


def train(loop: Loop) -> bool:
    """Run the loop to its end, or until a signal asks it to stop: then the step is finished and a checkpoint written.
    Collective.

    Returns:
        True if the run is as long as it was asked to be, False if it was stopped.

    Raises:
        UserError: a pack that does not fit, or a loss that is not finite; nothing was updated with it.
    """
    arguments, progress = loop.arguments, loop.progress
    batch_size = arguments.global_batch_size
    if progress.iteration == 0:
        hold_out(loop, "valid")
    remaining = loop.iterations - progress.iteration
    starts = range(progress.consumed_samples, progress.consumed_samples + remaining * batch_size, batch_size)
    saved = progress.iteration
    steps = prefetch(lambda start: _micro_batches(loop.feeds["train"], start), starts)
    with contextlib.closing(steps):
        for batches in steps:
            if (left := _samples_of_step(loop)) < batch_size:
                loop.writer.say(f"the last batch has {left} of {batch_size} packs: --train-epochs ends there")
            stopped = one_step(loop, batches) and progress.iteration != loop.iterations
            if stopped:
                loop.save.now(final=False)
                return False
            if _due(progress.iteration, arguments.training.eval_interval) or progress.iteration == loop.iterations:
                hold_out(loop, "valid")
            loop.save.look()
            if _due(progress.iteration, arguments.checkpoint.save_interval) and progress.iteration != loop.iterations:
                loop.save.on_the_way()
                saved = progress.iteration
    if saved != progress.iteration:
        loop.save.now(final=True)
    hold_out(loop, "test")
    return True


def one_step(loop: Loop, batches: Sequence[Batch]) -> bool:
    """One step and what is said of it. Returns whether any rank was asked to stop."""
    progress, job = loop.progress, loop.job
    learning_rate = get_canonical_lr_for_logging(job.optimizer.param_groups) or 0.0
    began = time.perf_counter()
    result = train_step(job, batches, loop.device.torch_device, stop=loop.stopping.signal is not None)
    seconds = time.perf_counter() - began
    samples = _samples_of_step(loop)
    progress.iteration += 1
    progress.consumed_samples += samples
    if not result.updated:
        progress.skipped_iterations += 1
        progress.skipped_samples += samples
    job.scheduler.follow(progress)
    if result.bad:
        _deal_with_bad_step(loop, batches, result)
    elif not result.updated:
        loop.writer.say(f"iteration {progress.iteration}: {_why_not_updated(result)}; nothing was updated")
    interval = loop.interval
    interval.totals += NO_TOTALS if result.bad else result.totals
    interval.seconds += seconds
    interval.steps += 1
    interval.flops += sum(model_flops(loop.arguments, job.padded_vocab_size, batch.actual_seq_len) for batch in batches)
    loop.writer.advance(progress.iteration)
    if _due(progress.iteration, loop.arguments.logging.log_interval) or progress.iteration == loop.iterations:
        _log(loop, learning_rate, result)
        loop.interval = Interval()
    return result.stop


def _samples_of_step(loop: Loop) -> int:
    """Packs of the next step: a global batch, or what --train-epochs leaves of it."""
    batch_size, end = loop.arguments.global_batch_size, loop.feeds["train"].end
    return batch_size if end is None else min(batch_size, end - loop.progress.consumed_samples)


def _deal_with_bad_step(loop: Loop, batches: Sequence[Batch], result: StepResult) -> None:
    """A loss or gradient that is not finite: keep the batch to look at, then go on or stop.

    Raises:
        DataError: --skip-bad-steps allows no more of them. Every rank raises it; nothing was updated.
    """
    iteration = loop.progress.iteration
    what = f"iteration {iteration}: {result.bad}"
    loop.writer.check_lease()
    kept = keep_bad_batch(loop.run_dir / "bad_steps", iteration, batches)
    packs = ", ".join(f"{prefix} {number}" for prefix, number in all_sample_ids(batches))
    loop.bad_steps += 1
    allowed = loop.arguments.training.skip_bad_steps
    if loop.bad_steps <= allowed:
        loop.writer.say(
            f"{what}; skipped, bad step {loop.bad_steps} of {allowed} allowed. Packs: {packs} (kept: {kept})"
        )
        return
    raise DataError(
        f"{what}; training stopped before the update. Packs: {packs}. The batch is kept in {kept}. Look at it, lower "
        "--lr, or add --skip-bad-steps N to go on without such steps"
    )


def hold_out(loop: Loop, split: str) -> None:
    """Loss on the first --eval-iters global batches of a split, the same ones every time. Collective."""
    feed, limit = loop.feeds.get(split), loop.arguments.training.eval_iters
    if feed is None or limit == 0:
        return
    batch_size = loop.arguments.global_batch_size
    whole_split = math.ceil(len(feed.dataset) / batch_size)
    totals = NO_TOTALS
    for index in range(min(limit, whole_split)):
        totals += evaluate(loop.job, _micro_batches(feed, index * batch_size), loop.device.torch_device)
    values = {
        "iteration": loop.progress.iteration,
        "split": split,
        "loss": totals.mean_loss,
        "trained_tokens": int(totals.trained_tokens),
    }
    loop.writer.record("eval", values)
    loop.writer.say(eval_line(values))


def _micro_batches(feed: BatchBuilder, start: int) -> list[Batch]:
    """This rank's micro-batches of one global batch. An error in them is this rank's own: others read other packs."""
    try:
        return list(feed.micro_batches(start))
    except UserError as error:
        error.on_one_rank = True
        raise


def _due(iteration: int, interval: int | None) -> bool:
    return interval is not None and iteration % interval == 0


def _why_not_updated(result: StepResult) -> str:
    if not result.totals.denominator:
        return "no token of its global batch is trained"
    return f"its gradient overflowed at a loss scale of {result.loss_scale:,.0f}"


def _log(loop: Loop, learning_rate: float, last: StepResult) -> None:
    interval, totals = loop.interval, loop.interval.totals
    replicas = loop.arguments.data_parallel_size
    if not totals.slots:  # every step of it was skipped
        return
    peak = peak_flops(loop.device, loop.arguments.training.precision)
    model_flops_per_second = interval.flops * replicas / interval.seconds / loop.arguments.world_size
    values: dict[str, Any] = {
        "iteration": loop.progress.iteration,
        "consumed_samples": loop.progress.consumed_samples,
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
        "peak_memory_bytes": loop.device.peak_memory_bytes(),
        "step_seconds": interval.seconds / interval.steps,
    }
    loop.writer.record("train", values)
    loop.writer.say(train_line(values, loop.iterations))
