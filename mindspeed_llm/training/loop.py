"""The one loop: steps, lines, evaluations and checkpoints until the run is as long as it was asked to be."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron.core.optimizer_param_scheduler import get_canonical_lr_for_logging

from mindspeed_llm.arguments.pretrain import PretrainArguments
from mindspeed_llm.batches import Batch, BatchBuilder, prefetch
from mindspeed_llm.checkpoints import Progress
from mindspeed_llm.devices import Device
from mindspeed_llm.errors import UserError
from mindspeed_llm.training.flops import model_flops
from mindspeed_llm.training.job import Job
from mindspeed_llm.training.metrics import MetricsWriter, eval_line, train_line
from mindspeed_llm.training.step import StepResult, Totals, evaluate, train_step

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
        save: writes a checkpoint; takes whether it is the last one.
    """

    arguments: PretrainArguments
    job: Job
    device: Device
    feeds: dict[str, BatchBuilder]
    progress: Progress
    iterations: int
    writer: MetricsWriter
    save: Callable[[bool], None]
    interval: Interval = field(default_factory=Interval)


def train(loop: Loop) -> None:
    """Run the loop to its end. Collective.

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
            one_step(loop, batches)
            if _due(progress.iteration, arguments.training.eval_interval) or progress.iteration == loop.iterations:
                hold_out(loop, "valid")
            if _due(progress.iteration, arguments.checkpoint.save_interval) and progress.iteration != loop.iterations:
                loop.save(False)
                saved = progress.iteration
    if saved != progress.iteration:
        loop.save(True)
    hold_out(loop, "test")


def one_step(loop: Loop, batches: Sequence[Batch]) -> None:
    """One step and what is said of it."""
    progress, job = loop.progress, loop.job
    learning_rate = get_canonical_lr_for_logging(job.optimizer.param_groups) or 0.0
    began = time.perf_counter()
    result = train_step(job, batches, loop.device.torch_device)
    seconds = time.perf_counter() - began
    batch_size = loop.arguments.global_batch_size
    progress.iteration += 1
    progress.consumed_samples += batch_size
    if result.updated:
        job.scheduler.step(batch_size)
    else:
        loop.writer.say(f"iteration {progress.iteration}: {_why_not_updated(result)}; nothing was updated")
    interval = loop.interval
    interval.totals += result.totals
    interval.seconds += seconds
    interval.steps += 1
    interval.flops += sum(model_flops(loop.arguments, job.padded_vocab_size, batch.actual_seq_len) for batch in batches)
    loop.writer.advance(progress.iteration)
    if _due(progress.iteration, loop.arguments.logging.log_interval) or progress.iteration == loop.iterations:
        _log(loop, learning_rate, result.grad_norm)
        loop.interval = Interval()


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
    return "no token of its global batch is trained" if not result.totals.denominator else "its gradient overflowed"


def _log(loop: Loop, learning_rate: float, grad_norm: float) -> None:
    interval, totals = loop.interval, loop.interval.totals
    replicas = loop.arguments.data_parallel_size
    values: dict[str, Any] = {
        "iteration": loop.progress.iteration,
        "consumed_samples": loop.progress.consumed_samples,
        "loss": totals.mean_loss,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "trained_tokens": int(totals.trained_tokens),
        "tokens": int(totals.tokens),
        "slots": int(totals.slots),
        "samples": int(totals.samples),
        "fill": totals.tokens / totals.slots,
        "tokens_per_second": totals.tokens / interval.seconds,
        "trained_tokens_per_second": totals.trained_tokens / interval.seconds,
        "model_tflops_per_device": interval.flops * replicas / interval.seconds / loop.arguments.world_size / 1e12,
        "peak_memory_bytes": loop.device.peak_memory_bytes(),
        "step_seconds": interval.seconds / interval.steps,
    }
    loop.writer.record("train", values)
    loop.writer.say(train_line(values, loop.iterations))
