"""Plots of training metrics: one run in detail (loss.png), or a comparison of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.errors import DataError
from mindspeed_llm.plotting import COLOURS, INK, MUTED, format_count, new_figure, save_figure, style_axes
from mindspeed_llm.reports.run_metrics import RunMetrics, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Above this number of points the loss curve is also drawn as a running mean, and outliers do not set the scale.
MANY_POINTS = 120


def draw_loss(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Draw the loss and held-out loss of a run, with learning rate, gradient norm and tokens per second below.

    Args:
        run_dir: run directory, which contains metrics.jsonl.
        out: output file; the default is loss.png in the run directory.

    Returns:
        Path of the picture.

    Raises:
        DataError: There are no metrics, or no training step was logged.
    """
    run_dir = Path(run_dir)
    metrics = read_metrics(run_dir)
    if not metrics.train:
        raise DataError(f"{metrics.path}: no training step was logged yet, there is nothing to draw")
    figure = new_figure(8.0, 6.4)
    panels = figure.subplot_mosaic(
        [["loss"] * 3, ["learning_rate", "grad_norm", "tokens_per_second"]], height_ratios=[2.3, 1]
    )
    _draw_loss_panel(panels["loss"], metrics)
    _draw_small_panel(panels["learning_rate"], metrics, "learning_rate", "Learning rate")
    _draw_small_panel(panels["grad_norm"], metrics, "grad_norm", "Gradient norm")
    _draw_small_panel(panels["tokens_per_second"], metrics, "tokens_per_second", "Tokens per second")
    return save_figure(figure, out or run_dir / "loss.png")


def draw_runs(run_dirs: Sequence[str | Path], out: str | Path, names: Sequence[str] | None = None) -> Path:
    """Draw a comparison of several runs: loss, held-out loss, gradient norm, tokens per second, fill and learning rate.

    Args:
        run_dirs: run directories.
        out: output file.
        names: names of the runs in the legend; the default is `run_names(run_dirs)`.

    Returns:
        Path of the picture.

    Raises:
        DataError: A run directory has no metrics.
    """
    runs = [read_metrics(run_dir) for run_dir in run_dirs]
    labels = list(names) if names else run_names([Path(run_dir) for run_dir in run_dirs])
    figure = new_figure(11.0, 6.2)
    axes = figure.subplot_mosaic(
        [["loss", "loss", "valid", "valid"], ["grad_norm", "tokens_per_second", "fill", "learning_rate"]],
        height_ratios=[1.7, 1],
    )
    panels = {
        "loss": ("Training loss", "nats per trained token"),
        "grad_norm": ("Gradient norm", ""),
        "tokens_per_second": ("Tokens per second", ""),
        "fill": ("Fill (tokens ÷ slots), %", ""),
        "learning_rate": ("Learning rate", ""),
    }
    for number, (metrics, label) in enumerate(zip(runs, labels, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        # More runs than colours: the colours are repeated with dashed lines.
        style = "-" if number < len(COLOURS) else "--"
        for key in panels:
            steps, values = metrics.points(key)
            if key == "fill":
                values = [100 * value for value in values]
            axes[key].plot(steps, values, style, color=colour, linewidth=1.3, label=label)
        evaluated, values = metrics.held_out()
        axes["valid"].plot(evaluated, values, style, marker="o", markersize=4, color=colour, linewidth=1.3, label=label)
    for key, (title, unit) in panels.items():
        style_axes(axes[key], title, "iteration", unit)
    style_axes(axes["valid"], "Held-out loss", "iteration", "nats per trained token")
    axes["fill"].set_ylim(0, 105)
    axes["tokens_per_second"].set_ylim(bottom=0)
    for key in ("learning_rate", "tokens_per_second", "grad_norm"):
        _use_compact_ticks(axes[key])
    if not any(metrics.held_out()[0] for metrics in runs):
        _draw_notice(axes["valid"], "no evaluation was logged")
    for text in axes["loss"].legend(fontsize=8, frameon=False).get_texts():
        # matplotlib would read text between two "$" in the name of a run as a formula.
        text.set_parse_math(False)
    return save_figure(figure, out)


def run_names(run_dirs: Sequence[Path]) -> list[str]:
    """Return a short name for each run directory: the shortest ends of the paths that differ.

    For example, ['packed/run', 'padded/run'] for two directories named `run`.
    """
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    depth = 1
    # Compared with the number of different paths: a directory that is given twice has the same name twice.
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _draw_loss_panel(axes: Axes, metrics: RunMetrics) -> None:
    """Draw training loss and held-out losses, and the parallel layout of the run as a title."""
    steps, losses = metrics.points("loss")
    many = len(steps) > MANY_POINTS
    label = "training"
    axes.plot(
        steps, losses, color=COLOURS[0], linewidth=1.0, alpha=0.35 if many else 1.0, label=None if many else label
    )
    if many:
        width = max(5, len(steps) // 40)
        smooth = running_mean(losses, width)
        axes.plot(steps, smooth, color=COLOURS[0], linewidth=1.8, label=f"training (mean of {width} lines)")
    for number, (split, name) in enumerate((("valid", "held-out"), ("test", "test"))):
        iterations, values = metrics.held_out(split)
        if not iterations:
            continue
        colour = COLOURS[1 + number]
        axes.plot(
            iterations,
            values,
            "o-",
            color=colour,
            linewidth=1.3,
            markersize=5,
            label=f"{name} (last {values[-1]:.3f})",
            zorder=3,
        )
    style_axes(axes, "Loss", "iteration", "nats per trained token")
    axes.margins(x=0.02)
    axes.legend(fontsize=9, frameon=False, labelcolor=INK)
    extent = f"{steps[-1]:,} iterations" if steps else "no finite loss"
    start = metrics.starts[-1].get("layout", {}) if metrics.starts else {}
    layout = layout_name(start if isinstance(start, dict) else {})
    axes.set_title(" · ".join(filter(None, (layout, extent))), loc="right", fontsize=8, color=MUTED)


def layout_name(layout: Mapping[str, object]) -> str:
    """Format the parallel layout of a start record as 'TP 2 · PP 1 · DP 4'.

    Args:
        layout: "layout" of the record, from a file: unexpected values are left out.

    Returns:
        The text; sizes that are missing or not valid are left out.
    """
    sizes = {
        short_name: size
        for short_name, key in (("TP", "tensor_model_parallel_size"), ("PP", "pipeline_model_parallel_size"))
        if isinstance(size := layout.get(key), int) and size > 0
    }
    ranks = layout.get("world_size")
    if len(sizes) == 2 and isinstance(ranks, int):
        sizes["DP"] = ranks // (sizes["TP"] * sizes["PP"])
    return " · ".join(f"{name} {size}" for name, size in sizes.items())


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of up to `width` values around each value.

    The window is symmetric and becomes smaller towards the ends, so that a trend is not distorted there.
    """
    half = width // 2
    means = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        window = values[i - reach : i + reach + 1]
        means.append(sum(window) / len(window))
    return means


def _draw_small_panel(axes: Axes, metrics: RunMetrics, key: str, title: str) -> None:
    """Draw the series `key` of the training records from 0 up."""
    steps, values = metrics.points(key)
    if steps:
        axes.plot(steps, values, color=COLOURS[5], linewidth=1.1)
    else:
        _draw_notice(axes, "not logged")
    style_axes(axes, title, "iteration")
    axes.set_ylim(bottom=0)
    if len(values) > MANY_POINTS:
        # The 98th percentile sets the scale, so that a slow first step or a spike does not flatten the curve.
        usual = sorted(values)[int(0.98 * (len(values) - 1))]
        axes.set_ylim(0, 1.25 * usual or None)
    _use_compact_ticks(axes)


def _use_compact_ticks(axes: Axes) -> None:
    """Use few ticks with short labels, for a small panel."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.2g}" if 0 < abs(value) < 10 else format_count(value))
    )


def _draw_notice(axes: Axes, text: str) -> None:
    """Write `text` into the middle of a panel without data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=MUTED)
