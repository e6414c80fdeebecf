"""Compute line charts as SVG coordinates, for pages without scripts. Templates write the elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mindspeed_llm.plotting import format_count

LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 10.0, 24.0  # margins around the plot, in units of the SVG
TICKS = 4


@dataclass(frozen=True)
class Series:
    """Values by iteration.

    Attributes:
        label: name in the legend.
        colour: CSS colour.
        steps: iterations, ascending.
        values: finite values, as many as steps.
        has_markers: whether each point is marked, as for a few evaluations.
    """

    label: str
    colour: str
    steps: Sequence[int]
    values: Sequence[float]
    has_markers: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a line.

    Attributes:
        x: horizontal coordinate.
        y: vertical coordinate.
        text: description, shown when the pointer is over it.
    """

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: name in the legend.
        colour: CSS colour.
        path: the `points` of an SVG polyline.
        markers: marked points.
    """

    label: str
    colour: str
    path: str
    markers: list[Point]


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis.

    Attributes:
        place: coordinate.
        label: its value.
    """

    place: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A line chart in SVG coordinates.

    Attributes:
        title: title.
        unit: unit of the values; "" without one.
        width: width of the SVG.
        height: height of the SVG.
        lines: lines that have points.
        x_ticks: ticks of the iterations.
        y_ticks: ticks of the values.
    """

    title: str
    unit: str
    width: float
    height: float
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @property
    def left(self) -> float:
        """Left end of the plot."""
        return LEFT

    @property
    def right(self) -> float:
        """Right end of the plot."""
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        """Lower end of the plot."""
        return self.height - BOTTOM


def line_chart(
    title: str, series: Sequence[Series], width: float, height: float, unit: str = "", top: float | None = None
) -> Chart | None:
    """Compute a chart from 0 up; None if no series has a value.

    Args:
        title: title of the chart.
        series: the lines; those without values are left out.
        width: width of the SVG.
        height: height of the SVG.
        unit: unit of the values.
        top: largest value of the axis; None for the largest value of the series.
    """
    series = [one for one in series if one.steps]
    if not series:
        return None
    first, last = min(one.steps[0] for one in series), max(one.steps[-1] for one in series)
    low = min(0.0, *(min(one.values) for one in series))
    high = max(max(one.values) for one in series) if top is None else top
    y_values = _round_values(low, high)
    low, high = min(low, y_values[0]), max(high, y_values[-1])

    def x(step: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * ((step - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return height - BOTTOM - (height - TOP - BOTTOM) * ((min(value, high) - low) / (high - low))

    lines = []
    for one in series:
        points = [
            Point(x(step), y(value), f"{one.label}, iteration {step:,}: {value:.4g}")
            for step, value in zip(one.steps, one.values, strict=True)
        ]
        path = " ".join(f"{point.x:.1f},{point.y:.1f}" for point in points)
        lines.append(Line(one.label, one.colour, path, points if one.has_markers else []))
    steps = [step for step in _round_values(first, last) if first <= step <= last and step == int(step)]
    return Chart(
        title,
        unit,
        width,
        height,
        lines,
        [Tick(x(step), f"{step:,.0f}") for step in steps],
        [Tick(y(value), _label(value)) for value in y_values],
    )


def _round_values(low: float, high: float) -> list[float]:
    """Return about TICKS multiples of 1, 2 or 5 times a power of ten, which enclose the range."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(start, end + 1)]


def _label(value: float) -> str:
    """Format the value of a tick."""
    return format_count(value) if abs(value) >= 10 or value == 0 else f"{value:.3g}"
