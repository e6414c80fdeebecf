"""Plot of packed data (packing.png): sample lengths, samples per pack, and the slots that packing saves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindspeed_llm.errors import DataError
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.plotting import COLOURS, INK, MUTED, PALE, format_count, new_figure, save_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histogram = Sequence[Sequence[int]]
# Maximum number of bars that are readable; more values are grouped into bins.
MAX_BARS = 60


@dataclass(frozen=True)
class PackingStatistics:
    """Statistics of packed data for pictures and tables.

    Attributes:
        samples: number of samples.
        tokens: number of tokens.
        trained_tokens: number of trained tokens.
        packs: number of packs.
        seq_length: number of slots of a pack.
        fill: tokens ÷ (packs · seq_length).
        padded_fill: tokens ÷ (samples · seq_length), the fill with one padded sample per pack.
        mean: mean number of samples per pack.
        variation: coefficient of variation of the number of samples per pack.
        most: maximum number of samples per pack.
        median_length: median length of the samples in tokens.
    """

    samples: int
    tokens: int
    trained_tokens: int
    packs: int
    seq_length: int
    fill: float
    padded_fill: float
    mean: float
    variation: float
    most: int
    median_length: float


def compute_packing_statistics(manifest: Manifest) -> PackingStatistics:
    """Compute the statistics of one manifest.

    Raises:
        DataError: The manifest counts no samples, or a histogram is not valid.
    """
    if manifest.samples < 1 or manifest.packs < 1 or manifest.seq_length < 1:
        raise DataError("the manifest counts no samples; preprocess again")
    per_pack, packs_with = _columns(manifest.histograms.samples_per_pack)
    lengths, samples_of = _columns(manifest.histograms.sample_length)
    mean = manifest.samples / manifest.packs
    spread = 0.0
    if packs_with.sum():
        spread = float(np.sqrt(np.average((per_pack - mean) ** 2, weights=packs_with)) / mean)
    median = 0.0
    if samples_of.sum():
        # The median is the mean of the two samples in the middle, which are the same sample for an odd number.
        ranks = np.array([(samples_of.sum() + 1) // 2, samples_of.sum() // 2 + 1])
        median = float(lengths[np.searchsorted(np.cumsum(samples_of), ranks)].mean())
    return PackingStatistics(
        samples=manifest.samples,
        tokens=manifest.tokens,
        trained_tokens=manifest.trained_tokens,
        packs=manifest.packs,
        seq_length=manifest.seq_length,
        fill=manifest.tokens / (manifest.packs * manifest.seq_length),
        padded_fill=manifest.tokens / (manifest.samples * manifest.seq_length),
        mean=mean,
        variation=spread,
        most=int(per_pack.max()) if len(per_pack) else 0,
        median_length=median,
    )


def draw_packing(manifests: str | Path | Iterable[str | Path], out: str | Path) -> Path:
    """Draw one row per manifest: sample lengths, samples per pack, and the slots with packing and with padding.

    Args:
        manifests: path of PREFIX_packed_manifest.json, or several paths.
        out: output file.

    Returns:
        Path of the picture.

    Raises:
        DataError: A manifest is missing, damaged or counts no samples, or no manifest is given.
    """
    paths = [Path(manifests)] if isinstance(manifests, (str, Path)) else [Path(path) for path in manifests]
    if not paths:
        raise DataError("no manifest was given, there is nothing to draw")
    named = [(path.name.removesuffix("_packed_manifest.json"), Manifest.read(path)) for path in paths]
    return save_figure(draw_packing_figure(named), out)


def draw_packing_figure(named: Sequence[tuple[str, Manifest]]) -> Figure:
    """Draw the figure of several manifests.

    Args:
        named: name and manifest of each row.

    Raises:
        DataError: A manifest counts no samples, or has a histogram that is not valid.
    """
    figure = new_figure(11.0, 3.5 * len(named))
    grid = figure.subplots(len(named), 3, squeeze=False, gridspec_kw={"width_ratios": [1.25, 1.0, 1.05]})
    for row, (name, manifest) in zip(grid, named, strict=True):
        figures = compute_packing_statistics(manifest)
        _draw_lengths(row[0], manifest, figures, name)
        if manifest.packed:
            _draw_samples_per_pack(row[1], manifest, figures)
        else:
            style_axes(row[1], "Samples per pack", grid="")
            row[1].set_axis_off()
            row[1].text(0.5, 0.5, "not packed:\none sample in each row", ha="center", va="center", color=MUTED)
        _draw_slots(row[2], manifest, figures)
    return figure


def _columns(histogram: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Return values, ascending, and counts of a histogram; int64 [values] each.

    Raises:
        DataError: The histogram is not a list of pairs of non-negative integers.
    """
    try:
        table = np.asarray(histogram, dtype=np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        raise DataError("a histogram of the manifest is not a list of [value, count]; preprocess again") from None
    if table.size and table.min() < 0:
        raise DataError("a histogram of the manifest has a negative number; preprocess again")
    # The file may come from elsewhere, so the order is not taken for granted.
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0], table[:, 1]


def _draw_lengths(axes: Axes, manifest: Manifest, figures: PackingStatistics, name: str) -> None:
    """Draw the distribution of sample lengths on a logarithmic scale."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    lengths, counts = _columns(manifest.histograms.sample_length)
    title = f"{name}: length of {figures.samples:,} samples"
    if len(lengths):
        # Lengths are integers, so the edges of the bins are at half numbers, and no bin is narrower than one token.
        span = np.geomspace(max(lengths[0], 1), lengths[-1] + 1, 41)
        edges = np.unique(np.floor(span)) - 0.5
        look: dict[str, Any] = {"histtype": "stepfilled", "color": COLOURS[0], "alpha": 0.9, "linewidth": 0}
        axes.hist(lengths, bins=edges.tolist(), weights=counts, **look)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        # The lines end at 86 % of the height, below the legend.
        for length, name, colour, style in (
            (figures.median_length, "median", INK, ":"),
            (figures.seq_length, "seq_length", COLOURS[1], "--"),
        ):
            axes.axvline(length, ymax=0.86, color=colour, linewidth=1, linestyle=style, label=f"{name} {length:,.0f}")
        axes.set_ylim(top=1.16 * axes.get_ylim()[1])
        axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper right", labelcolor=INK, columnspacing=1.0)
    longest = f"; longest {int(lengths[-1]):,}" if len(lengths) else ""
    style_axes(axes, title, f"tokens in a sample (log scale{longest})\n{_format_row_counts(manifest)}", "samples")


def _format_row_counts(manifest: Manifest) -> str:
    """Format the numbers of kept, truncated, skipped and dropped rows in two lines."""
    counts = manifest.counts
    skipped = sum(counts.skipped.values())
    return (
        f"{counts.rows_read:,} rows: {counts.kept:,} kept, {counts.truncated:,} of them truncated\n"
        f"{skipped:,} skipped, {counts.dropped:,} of them dropped as too long"
    )


def _draw_samples_per_pack(axes: Axes, manifest: Manifest, figures: PackingStatistics) -> None:
    """Draw the distribution of the number of samples per pack."""
    from matplotlib.ticker import MaxNLocator

    numbers, packs = _columns(manifest.histograms.samples_per_pack)
    if len(numbers):
        width = max(1, -(-int(numbers[-1] - numbers[0] + 1) // MAX_BARS))
        edges = np.arange(numbers[0], numbers[-1] + width + 1, width) - 0.5
        axes.hist(numbers, bins=edges.tolist(), weights=packs, color=COLOURS[2], linewidth=0, rwidth=0.86)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.axvline(figures.mean, color=INK, linewidth=1, linestyle=":")
        text = f"mean {figures.mean:.1f}\nvariation {figures.variation:.2f}\nmaximum {figures.most}"
        axes.text(0.98, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=INK)
    style_axes(axes, f"Samples in each of {figures.packs:,} packs", "samples in a pack", "packs")


def _draw_slots(axes: Axes, manifest: Manifest, figures: PackingStatistics) -> None:
    """Draw the shares of trained tokens, other tokens and padding, with packing and with one sample per row."""
    rows = [("padded", figures.samples, figures.padded_fill)]
    if manifest.packed:
        rows.insert(0, ("packed", figures.packs, figures.fill))
    trained = figures.trained_tokens / figures.tokens if figures.tokens else 0.0
    names = (f"trained, {100 * trained:.1f} % of the tokens", "not trained", "padding")
    colours = (COLOURS[0], "#8fb4d6", PALE)
    for number, (label, count, fill) in enumerate(rows):
        left = 0.0
        for part, name, colour in zip((fill * trained, fill * (1 - trained), 1 - fill), names, colours, strict=True):
            axes.barh(number, 100 * part, left=100 * left, color=colour, height=0.5, label=None if number else name)
            left += part
        slots = format_count(count * figures.seq_length)
        axes.text(0, number - 0.31, f"{label}: {count:,} rows of {figures.seq_length:,}, {slots} slots, "
                  f"fill {100 * fill:.2f} %", fontsize=8, color=INK, va="bottom")  # fmt: skip
    axes.set_ylim(len(rows) - 0.4 + (len(rows) == 1), -0.6)
    axes.set_yticks([])
    axes.set_xlim(0, 100)
    title = "Slots of the dataset"
    if manifest.packed:
        title = f"Packed: {figures.samples / figures.packs:.1f} times fewer rows"
    style_axes(axes, title, "share of slots, %", grid="x")
    axes.spines["left"].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.02),
                columnspacing=1.0, handlelength=1.2, labelcolor=INK)  # fmt: skip
