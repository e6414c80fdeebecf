"""Style of all plots, and functions that write them as PNG files atomically."""

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
# Distinguishable with red-green colour blindness.
COLOURS = ("#2468a8", "#d5722a", "#3a8f6b", "#a2428c", "#7a6a2f", "#4b4f58")
PALE = "#c9cdd3"


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure.

    Args:
        width: width in inches.
        height: height in inches.
    """
    # pyplot would keep the figure in global state, and could open a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(axes: Axes, title: str = "", x: str = "", y: str = "", grid: str = "y") -> None:
    """Apply the common style to a panel: title on the left, labels, light grid, no box.

    Args:
        axes: the panel.
        title: title of the panel.
        x: label of the x axis.
        y: label of the y axis.
        grid: axis of the grid lines, "x", "y" or "both"; "" for no grid.
    """
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
    """Return the figure as a PNG file."""
    # With an active layout engine savefig draws the figure twice. Executing the layout here and removing the engine
    # saves one of them.
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG file. The file is replaced atomically: an error leaves the old file unchanged.

    Args:
        figure: the figure.
        path: output file; its directory is created if necessary.

    Returns:
        The path of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, shared=True) as file:
        file.write(render_png(figure))
    return path


def format_count(number: float) -> str:
    """Format a count for a short label: 1234567 → '1.23 M'."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= size:
            return f"{number / (1e3 if size == 1e4 else size):.3g}{unit}"
    return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"
