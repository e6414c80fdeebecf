"""Render a run as one self-contained HTML page, without scripts, external fonts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import DataError, escape_control_characters
from mindspeed_llm.html_template import render_html, write_html
from mindspeed_llm.indexed_dataset import Manifest
from mindspeed_llm.manifest import manifest_path
from mindspeed_llm.plotting import COLOURS
from mindspeed_llm.reports.generations import Generations, read_generations
from mindspeed_llm.reports.loss_plot import layout_name
from mindspeed_llm.reports.packing_plot import PackingStatistics, compute_packing_statistics
from mindspeed_llm.reports.run_metrics import RunMetrics, read_metrics
from mindspeed_llm.reports.runs_table import format_or_dash, summarize_run
from mindspeed_llm.reports.svg_chart import Chart, Series, line_chart

TEMPLATE = "run_page.html"  # beside this file
PAGE_NAME = "report.html"
WIDE, NARROW = (1140.0, 300.0), (370.0, 150.0)  # sizes of charts


@dataclass(frozen=True)
class SlotShares:
    """Shares of the slots of a data set, in percent.

    Attributes:
        label: "packed" or "padded".
        rows: number of rows.
        fill: tokens.
        trained: trained tokens; the other tokens are the rest of `fill`.
    """

    label: str
    rows: int
    fill: float
    trained: float


def write_run_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run; an existing file is replaced only by a complete page.

    Args:
        run_dir: run directory, which contains metrics.jsonl.
        out: output file; the default is report.html in the run directory.

    Returns:
        Path of the page.

    Raises:
        DataError: the run has no metrics, or the file cannot be written.
    """
    metrics = read_metrics(run_dir)
    path = Path(out) if out is not None else metrics.path.parent / PAGE_NAME
    page = render_run_page(metrics, read_generations(metrics.path.parent), str(metrics.path.parent))
    try:
        write_html(path, page)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another path with --out") from error
    return path


def render_run_page(metrics: RunMetrics, generations: Generations, name: str) -> str:
    """Render the page; the template escapes all text of the run.

    Args:
        metrics: metrics of the run.
        generations: answers of the run.
        name: title of the page.
    """
    start = metrics.starts[-1] if metrics.starts else {}
    return render_html(
        Path(__file__).with_name(TEMPLATE),
        {"visible": escape_control_characters},
        name=name,
        layout=layout_name(_mapping(start.get("layout"))),
        figures=_figures(metrics, generations),
        loss=_loss_chart(metrics),
        charts=[chart for chart in _small_charts(metrics, generations) if chart is not None],
        packing=[_slot_shares(prefix) for prefix in _prefixes(start)],
        generations=generations,
        layout_rows=_rows(_mapping(start.get("layout"))),
        version_rows=_rows(_mapping(start.get("versions"))),
        flag_rows=_flags(_mapping(start.get("arguments"))),
        colours=COLOURS,
    )


def _mapping(value: object) -> Mapping[str, Any]:
    """Return a value of a file that is an object; otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " "), str(value)) for key, value in values.items() if value is not None]


def _figures(metrics: RunMetrics, generations: Generations) -> list[tuple[str, str]]:
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


def _loss_chart(metrics: RunMetrics) -> Chart | None:
    """Return the chart of training and held-out loss."""
    series = [Series("training", COLOURS[0], *metrics.series("loss"))]
    for number, (split, label) in enumerate((("valid", "held-out"), ("test", "test")), start=1):
        series.append(Series(label, COLOURS[number], *metrics.held_out(split), has_markers=True))
    return line_chart("Loss", series, *WIDE, unit="nats per trained token")


def _small_charts(metrics: RunMetrics, generations: Generations) -> list[Chart | None]:
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
    return charts


def _prefixes(start: Mapping[str, Any]) -> list[str]:
    """Return the prefixes of the training data."""
    data = _mapping(_mapping(start.get("arguments")).get("data"))
    paths = data.get("data_path") or data.get("train_data_path")
    return [path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []


def _slot_shares(prefix: str) -> tuple[str, PackingStatistics | None, list[SlotShares]]:
    """Return the statistics of packed files and the shares of their slots; nothing if their manifest is not here."""
    try:
        manifest = Manifest.read(manifest_path(prefix))
        statistics = compute_packing_statistics(manifest)
    except (DataError, OSError):
        return prefix, None, []
    trained = statistics.trained_tokens / statistics.tokens if statistics.tokens else 0.0
    rows = [("padded: one sample per row", statistics.samples, statistics.padded_fill)]
    if manifest.packed:
        rows.insert(0, ("packed", statistics.packs, statistics.fill))
    return prefix, statistics, [SlotShares(label, n, 100 * fill, 100 * fill * trained) for label, n, fill in rows]


def _flags(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the flags that the command line contains, with their values."""
    given: Sequence[Any] = arguments.get("given") or []
    values = {
        "--" + key.replace("_", "-"): value for group in arguments.values() for key, value in _mapping(group).items()
    }
    return [(str(flag), _shown(values.get(flag))) for flag in given] if isinstance(given, list) else []


def _shown(value: object) -> str:
    """Format the value of a flag."""
    if value is None or value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
