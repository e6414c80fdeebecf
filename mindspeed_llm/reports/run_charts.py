"""Figures and charts of a run, for its page and its SVG picture."""

from __future__ import annotations

from mindspeed_llm.plotting import COLOURS
from mindspeed_llm.reports.generations import Generations
from mindspeed_llm.reports.run_metrics import RunMetrics
from mindspeed_llm.reports.runs_table import format_or_dash, summarize_run
from mindspeed_llm.reports.svg_chart import Chart, Series, line_chart

WIDE, NARROW = (1140.0, 300.0), (370.0, 150.0)  # sizes of charts


def run_figures(metrics: RunMetrics, generations: Generations) -> list[tuple[str, str]]:
    """Return (value, description) of the figures at the top."""
    summary = summarize_run(metrics)
    held_out = f"{format_or_dash(summary.first_held_out, '.4f')} → {format_or_dash(summary.last_held_out, '.4f')}"
    figures = [
        (f"{summary.iterations:,}", "iterations"),
        (f"{format_or_dash(summary.first_loss, '.4f')} → {format_or_dash(summary.last_loss, '.4f')}", "training loss"),
        (held_out if summary.last_held_out is not None else "", "held-out loss"),
        (format_or_dash(summary.tokens_per_second, ",.0f"), "tokens per second"),
        (format_or_dash(summary.fill, ".1%"), "fill (tokens ÷ slots)"),
    ]
    if generations.iterations:
        exact, answers = generations.score(generations.iterations[-1])
        figures.insert(0, (f"{exact} of {answers}" if answers else "", "answers exact at the last evaluation"))
    return [(value, label) for value, label in figures if value]


def loss_chart(metrics: RunMetrics) -> Chart | None:
    """Return the chart of training and held-out loss."""
    series = [Series("training", COLOURS[0], *metrics.series("loss"))]
    for number, (split, label) in enumerate((("valid", "held-out"), ("test", "test")), start=1):
        series.append(Series(label, COLOURS[number], *metrics.held_out(split), has_markers=True))
    return line_chart("Loss", series, *WIDE, unit="nats per trained token")


def small_charts(metrics: RunMetrics, generations: Generations) -> list[Chart]:
    """Return the charts below that of the loss."""
    scores = [(iteration, *generations.score(iteration)) for iteration in generations.iterations]
    scored = [(iteration, exact) for iteration, exact, answers in scores if answers]
    series = Series("exact answers", COLOURS[2], [i for i, _ in scored], [e for _, e in scored], has_markers=True)
    most = max((answers for _, _, answers in scores), default=0)
    charts = [line_chart("Exact answers", [series], *NARROW, unit=f"of {most}", top=most or None)]
    for key, title in (
        ("tokens_per_second", "Tokens per second"),
        ("learning_rate", "Learning rate"),
        ("grad_norm", "Gradient norm"),
    ):
        charts.append(line_chart(title, [Series(title, COLOURS[5], *metrics.series(key))], *NARROW))
    return [chart for chart in charts if chart is not None]
