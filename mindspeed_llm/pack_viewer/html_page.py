"""A pack as one page of HTML that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed_dataset import Manifest
from mindspeed_llm.pack_viewer.pack_view import PackView, SampleView
from mindspeed_llm.pack_viewer.terminal_view import show_control_characters
from mindspeed_llm.plotting import COLOURS
from mindspeed_llm.storage.atomic_write import write_atomically

BARS = 32  # of a histogram
TEMPLATE = "page.html"  # beside this file


def write_html_page(
    path: str | Path, view: PackView, summary: Sequence[tuple[str, str]], manifest: Manifest | None, name: str
) -> Path:
    """Write the page, whole or not at all.

    Raises:
        DataError: the place cannot be written.
    """
    path = Path(path)
    try:
        write_atomically(path, render_html_page(view, summary, manifest, name).encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"--html {path}: cannot be written ({error.strerror}); choose another place") from error
    return path


def render_html_page(view: PackView, summary: Sequence[tuple[str, str]], manifest: Manifest | None, name: str) -> str:
    """Render the page; the template escapes all that comes from the data."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(commas=lambda number: f"{number:,}", visible=show_control_characters, colour=_colour)
    histograms = []
    if manifest is not None:
        histograms = [
            _histogram("length of samples, in tokens", manifest.histograms.sample_length),
            _histogram("samples in a pack", manifest.histograms.samples_per_pack),
        ]
    return environment.get_template(TEMPLATE).render(
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
    """A part of the bar that shows the slots of a pack: a sample with its number, or padding."""

    slots: int
    number: int = 0
    sample: SampleView | None = None


def _blocks(view: PackView) -> list[BarSegment]:
    """The pack as a bar: a block for each sample, and one for each gap of padding."""
    blocks, place = [], 0
    for number, sample in enumerate(view.samples, start=1):
        blocks.append(BarSegment(sample.start - place))
        blocks.append(BarSegment(sample.tokens, number, sample))
        place = sample.start + sample.tokens
    blocks.append(BarSegment(view.tokens + view.padding - place))
    return [block for block in blocks if block.slots]


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


@dataclass(frozen=True)
class HistogramBar:
    """A bar of a histogram: how many of the values low … high there are; height in percent of the highest bar."""

    low: int
    high: int
    count: int
    height: float


@dataclass(frozen=True)
class HistogramView:
    """Bars of equal width over the values low … high."""

    title: str
    low: int
    high: int
    bars: list[HistogramBar]


def _histogram(title: str, pairs: Sequence[Sequence[int]]) -> HistogramView | None:
    """[[value, count]...] as bars of equal width; None if there are no values."""
    if not pairs:
        return None
    low, high = pairs[0][0], pairs[-1][0]
    width = max(1, -(-(high - low + 1) // BARS))
    counts = [0] * (-(-(high - low + 1) // width))
    for value, count in pairs:
        counts[(value - low) // width] += count
    most = max(counts) or 1
    starts = range(low, low + len(counts) * width, width)
    bars = [
        HistogramBar(start, start + width - 1, count, 100 * count / most)
        for start, count in zip(starts, counts, strict=True)
    ]
    return HistogramView(title, low, high, bars)
