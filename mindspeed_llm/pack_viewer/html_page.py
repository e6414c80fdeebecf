"""Render a pack as one self-contained HTML page, without scripts, external fonts or images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import DataError
from mindspeed_llm.html_template import render_html, write_html
from mindspeed_llm.manifest import Manifest
from mindspeed_llm.pack_viewer.pack_view import PackView, SampleView
from mindspeed_llm.pack_viewer.terminal_view import show_control_characters
from mindspeed_llm.plotting import COLOURS

BARS = 32  # of a histogram
TEMPLATE = "page.html"  # beside this file


def write_html_page(
    path: str | Path, view: PackView, summary: Sequence[tuple[str, str]], manifest: Manifest | None, name: str
) -> Path:
    """Render a pack and write the page; an existing file is replaced only by a complete page.

    Args:
        path: file to write.
        view: the pack.
        summary: (name, value) rows of the table.
        manifest: manifest of the packed files, for the histograms; None if there is none.
        name: title of the page.

    Returns:
        Path of the page.

    Raises:
        DataError: the file cannot be written.
    """
    path = Path(path)
    try:
        write_html(path, render_html_page(view, summary, manifest, name))
    except OSError as error:
        raise DataError(f"--html {path}: cannot be written ({error.strerror}); choose another path") from error
    return path


def render_html_page(view: PackView, summary: Sequence[tuple[str, str]], manifest: Manifest | None, name: str) -> str:
    """Render the page; the template escapes all text from the data.

    Args:
        view: the pack.
        summary: (name, value) rows of the table.
        manifest: manifest of the packed files, for the histograms; None if there is none.
        name: title of the page.
    """
    histograms = []
    if manifest is not None:
        histograms = [
            _histogram("length of samples, in tokens", manifest.histograms.sample_length),
            _histogram("samples in a pack", manifest.histograms.samples_per_pack),
        ]
    filters: dict[str, Callable[..., Any]] = {"visible": show_control_characters, "colour": _colour}
    return render_html(
        Path(__file__).with_name(TEMPLATE),
        filters,
        name=name,
        view=view,
        summary=summary,
        share=100 * view.trained / view.tokens if view.tokens else 0.0,
        histograms=[histogram for histogram in histograms if histogram is not None],
        blocks=_blocks(view),
        colours=COLOURS,
    )


@dataclass(frozen=True)
class BarSegment:
    """One part of the bar that shows the slots of a pack: a sample or padding.

    Attributes:
        slots: number of slots.
        number: number of the sample, from 1; 0 for padding.
        sample: the sample; None for padding.
    """

    slots: int
    number: int = 0
    sample: SampleView | None = None


def _blocks(view: PackView) -> list[BarSegment]:
    """Return the parts of the bar: one for each sample and one for each gap of padding or reserved slots."""
    blocks, end = [], 0
    for number, sample in enumerate(view.samples, start=1):
        blocks.append(BarSegment(sample.start - end))
        blocks.append(BarSegment(sample.tokens, number, sample))
        end = sample.start + sample.tokens
    blocks.append(BarSegment(view.tokens + view.virtual_tokens + view.padding - end))
    # Samples without padding between them leave gaps of 0 slots.
    return [block for block in blocks if block.slots]


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


@dataclass(frozen=True)
class HistogramBar:
    """One bar of a histogram.

    Attributes:
        low: smallest value of the bar.
        high: largest value of the bar.
        count: number of values from low to high.
        height: height in percent of the highest bar.
    """

    low: int
    high: int
    count: int
    height: float


@dataclass(frozen=True)
class HistogramView:
    """Histogram with bars of equal width.

    Attributes:
        title: description of the values.
        low: smallest value.
        high: largest value.
        bars: bars in ascending order.
    """

    title: str
    low: int
    high: int
    bars: list[HistogramBar]


def _histogram(title: str, pairs: Sequence[Sequence[int]]) -> HistogramView | None:
    """Return the histogram of ascending (value, count) pairs; None if there are no values."""
    if not pairs:
        return None
    low, high = pairs[0][0], pairs[-1][0]
    # Rounded up, so that at most BARS bars cover all values; every value is an integer.
    width = max(1, -(-(high - low + 1) // BARS))
    counts = [0] * (-(-(high - low + 1) // width))
    for value, count in pairs:
        counts[(value - low) // width] += count
    highest = max(counts) or 1
    starts = range(low, low + len(counts) * width, width)
    bars = [
        HistogramBar(start, start + width - 1, count, 100 * count / highest)
        for start, count in zip(starts, counts, strict=True)
    ]
    return HistogramView(title, low, high, bars)
