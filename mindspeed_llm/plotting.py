"""How every picture of this project looks, and how it reaches the disk: whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.storage.atomic_write import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
MUTED = "#8a8f98"
GRID = "#e6e8eb"
# Told apart also by readers who do not tell red from green.
COLOURS = ("#2468a8", "#d5722a", "#3a8f6b", "#a2428c", "#7a6a2f", "#4b4f58")
PALE = "#c9cdd3"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width × height inches that no global state knows of (no pyplot)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, title: str = "", x: str = "", y: str = "", grid: str = "y") -> None:
    """The same plain frame for every panel: title at the left, labels, a pale grid, no box."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    if grid:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def render_png(figure: Figure) -> bytes:
    """`figure` as a PNG. Laid out once and drawn once: savefig, left alone, draws what it is to lay out twice."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as a PNG at `path`, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, shared=True) as file:
        file.write(render_png(figure))
    return path


def format_count(number: float) -> str:
    """1234567 → '1.23 M': a count that fits into a label."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= size:
            return f"{number / (1e3 if size == 1e4 else size):.3g}{unit}"
    return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"
