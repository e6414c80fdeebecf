"""Summary of one or several runs as a plain-text table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mindspeed_llm.console.text_tables import table_with_header
from mindspeed_llm.reports.run_metrics import RunMetrics


@dataclass(frozen=True)
class RunSummary:
    """Summary of one run. A value is None if it was not logged.

    Attributes:
        iterations: last logged iteration.
        first_loss: training loss of the first logged line.
        last_loss: training loss of the last logged line.
        first_held_out: loss of the first evaluation on the validation split.
        last_held_out: loss of the last evaluation on the validation split.
        fill: tokens ÷ slots over all logged steps.
        trained_share: trained tokens ÷ tokens over all logged steps.
        tokens_per_second: total tokens ÷ total seconds, without the first logged line, which includes the warm-up.
        step_seconds: median of the seconds per step, without the first logged line.
        peak_memory_bytes: peak memory of rank 0.
    """

    iterations: int
    first_loss: float | None
    last_loss: float | None
    first_held_out: float | None
    last_held_out: float | None
    fill: float | None
    trained_share: float | None
    tokens_per_second: float | None
    step_seconds: float | None
    peak_memory_bytes: float | None


def summarize_run(metrics: RunMetrics) -> RunSummary:
    """Compute the summary of one run."""
    losses = metrics.series("loss")[1]
    held_out = metrics.held_out()[1]
    tokens = sum(metrics.series("tokens")[1])
    return RunSummary(
        iterations=metrics.train[-1]["iteration"] if metrics.train else 0,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        first_held_out=held_out[0] if held_out else None,
        last_held_out=held_out[-1] if held_out else None,
        fill=_ratio(tokens, sum(metrics.series("slots")[1])),
        trained_share=_ratio(sum(metrics.series("trained_tokens")[1]), tokens),
        tokens_per_second=_throughput(metrics),
        step_seconds=_median(metrics.series("step_seconds")[1]),
        peak_memory_bytes=max(metrics.series("peak_memory_bytes")[1], default=None),
    )


def runs_table(names: Sequence[str], runs: Sequence[RunMetrics]) -> str:
    """Return a table with one line per run: losses, held-out losses, fill, trained share, throughput, time, memory.

    Args:
        names: name of each run.
        runs: metrics of each run.
    """
    head = ["run", "iterations", "first loss", "last loss", "first held-out", "last held-out", "fill", "trained share",
            "tokens/s", "s/step", "peak GiB"]  # fmt: skip
    rows: list[Sequence[str]] = [head]
    for name, metrics in zip(names, runs, strict=True):
        figures = summarize_run(metrics)
        peak = figures.peak_memory_bytes
        rows.append(
            [
                name,
                f"{figures.iterations:,}",
                format_or_dash(figures.first_loss, ".4f"),
                format_or_dash(figures.last_loss, ".4f"),
                format_or_dash(figures.first_held_out, ".4f"),
                format_or_dash(figures.last_held_out, ".4f"),
                format_or_dash(figures.fill, ".2%"),
                format_or_dash(figures.trained_share, ".1%"),
                format_or_dash(figures.tokens_per_second, ",.0f"),
                format_or_dash(figures.step_seconds, ".3f"),
                format_or_dash(peak and peak / 2**30, ".2f"),
            ]
        )
    return table_with_header(rows)


def format_or_dash(value: float | None, form: str) -> str:
    """Return `value` in the format `form`, or a dash for None."""
    return "–" if value is None else format(value, form)


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None


def _throughput(metrics: RunMetrics) -> float | None:
    """Return tokens ÷ seconds over all logged lines but the first, or None."""
    # A mean of the speeds of the lines would give short steps too much weight. Seconds follow from tokens and speed.
    lines = [
        (record["tokens"], record["tokens_per_second"])
        for record in metrics.train
        if isinstance(record.get("tokens"), int) and (record.get("tokens_per_second") or 0) > 0
    ]
    # A run with a single logged line has no line without the warm-up.
    lines = lines[1:] or lines
    return _ratio(sum(tokens for tokens, _ in lines), sum(tokens / speed for tokens, speed in lines))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values[1:] or values) if values else None
