"""Format tokens, operations, memory against --device-type, and the estimated time of a plan."""

from __future__ import annotations

from collections.abc import Iterator

from mindspeed_llm.console.progress import duration
from mindspeed_llm.dry_run.job_plan import JobPlan
from mindspeed_llm.dry_run.memory_fit import USABLE_SHARE

GIB = 2**30
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def work_lines(plan: JobPlan) -> Iterator[str]:
    """Yield the lines about tokens and operations of a step and of the run."""
    work, batch = plan.work, plan.arguments.global_batch_size
    packs = plan.derived.length.consumed_samples if plan.length_is_known else None
    if packs is not None and work.tokens is not None:
        yield (
            f"tokens in all: {packs * work.tokens:,.0f} useful and {packs * (work.slots - work.tokens):,.0f} of "
            f"padding{_how_measured(plan)}"
        )
    elif packs is not None:
        yield f"tokens in all: at most {packs * work.slots:,.0f}, with padding"
    line = f"operations: {_flops(batch * work.model_flops)} a step"
    if packs is not None:
        line += f", {_flops(packs * work.model_flops)} in all"
    if work.executed_flops > work.model_flops:
        line += (
            f"; with what recomputation and the loss repeat {_flops(batch * work.executed_flops)} a step "
            f"(× {work.executed_flops / work.model_flops:.2f})"
        )
    if not work.packs:
        line += "; at most: without data, each row counts as one sample"
    yield line


def _how_measured(plan: JobPlan) -> str:
    """Return where the counts come from, if not all packs of an epoch were read."""
    epoch, read = plan.derived.length.epoch_length, plan.work.packs
    return f" (from {read:,} of {epoch:,} rows)" if read < epoch else ""


def fit_lines(plan: JobPlan) -> Iterator[str]:
    """Yield the lines about memory and time on --device-type; none without the flag."""
    accelerator = plan.accelerator
    if accelerator is None:
        return
    needed, memory = plan.largest.total, accelerator.memory
    yield (
        f"fit: {_verdict(needed / memory)}: rank {plan.largest.rank} needs {needed / GIB:.1f} GiB, "
        f"{needed / memory:.0%} of the {memory / GIB:.1f} GiB of one {accelerator.name} ({accelerator.memory_source}); "
        f"{1 - USABLE_SHARE:.0%} are kept for what is not counted"
    )
    yield from _proposal_lines(plan)
    yield _time(plan)


def _verdict(share: float) -> str:
    if share <= USABLE_SHARE:
        return "the job fits"
    return "the job may not fit" if share <= 1 else "the job does not fit"


def _proposal_lines(plan: JobPlan) -> Iterator[str]:
    """Yield the changes that make the job fit, each with its memory."""
    proposals = plan.proposals
    if proposals is None:
        return
    if proposals.fitting:
        yield f"to make it fit{', one of' if len(proposals.fitting) > 1 else ''}:"
        yield from (f"  {each.text}: {each.memory / GIB:.1f} GiB" for each in proposals.fitting)
        return
    line = f"no change that was tried makes it fit on {plan.arguments.world_size} ranks; use more ranks"
    if proposals.smallest is not None:
        line += f". The smallest is {proposals.smallest.memory / GIB:.1f} GiB, with {proposals.smallest.text}"
    yield line


def _time(plan: JobPlan) -> str:
    """Return the line about the estimated time, or why there is none."""
    accelerator, mfu = plan.accelerator, plan.arguments.device.mfu
    assert accelerator is not None
    if mfu is None:
        return "time: give --mfu F for an estimate, the model FLOPS utilization of an earlier run (metrics.jsonl)"
    if accelerator.peak_flops is None:
        return f"time: no estimate for --mfu {mfu:g}: {accelerator.peak_source}"
    if plan.arguments.training.precision == "fp32":
        return f"time: no estimate for --mfu {mfu:g}: the peak of {accelerator.name} holds for --bf16 and --fp16"
    ranks = plan.arguments.world_size
    speed = ranks * accelerator.peak_flops * mfu
    seconds = plan.arguments.global_batch_size * plan.work.model_flops / speed
    line = f"time, an estimate for --mfu {mfu:g}: {seconds:.3g} s a step"
    if plan.length_is_known:
        in_all = plan.derived.length.consumed_samples * plan.work.model_flops / speed
        line += f", {duration(in_all)} in all without evaluations and checkpoints"
    return (
        f"{line}; {ranks} × {accelerator.name} with a peak of {accelerator.peak_flops / 1e12:.0f} TFLOPS "
        f"({accelerator.peak_source})"
    )


def _flops(operations: float) -> str:
    """Format a number of operations with three digits: 1.23 PFLOP."""
    index = 0
    while operations >= 999.5 and index < len(PREFIXES) - 1:
        operations, index = operations / 1000, index + 1
    return f"{operations:.3g} {PREFIXES[index]}FLOP"
