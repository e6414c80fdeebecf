"""Render a run as one self-contained HTML page, without scripts, external fonts or images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindspeed_llm.errors import DataError, escape_control_characters
from mindspeed_llm.html_template import render_html, write_html
from mindspeed_llm.manifest import Manifest, manifest_path
from mindspeed_llm.plotting import COLOURS
from mindspeed_llm.reports.generations import Generations, read_generations
from mindspeed_llm.reports.loss_plot import layout_name
from mindspeed_llm.reports.packing_plot import PackingStatistics, compute_packing_statistics
from mindspeed_llm.reports.run_charts import loss_chart, run_figures, small_charts
from mindspeed_llm.reports.run_metrics import RunMetrics, read_metrics

TEMPLATE = "run_page.html"  # beside this file
PAGE_NAME = "report.html"


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
    return write_report(run_dir, out, PAGE_NAME, render_run_page)


def write_report(
    run_dir: str | Path, out: str | Path | None, name: str, render: Callable[[RunMetrics, Generations], str]
) -> Path:
    """Render a run and write the result atomically.

    Args:
        run_dir: run directory, which contains metrics.jsonl.
        out: output file, or None.
        name: name of the file in the run directory if there is no `out`.
        render: returns the content.

    Returns:
        Path of the file.

    Raises:
        DataError: the run has no metrics, or the file cannot be written.
    """
    metrics = read_metrics(run_dir)
    path = Path(out) if out is not None else metrics.path.parent / name
    content = render(metrics, read_generations(metrics.path.parent))
    try:
        write_html(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); choose another path with --out") from error
    return path


def render_run_page(metrics: RunMetrics, generations: Generations) -> str:
    """Render the page; the template escapes all text of the run.

    Args:
        metrics: metrics of the run.
        generations: answers of the run.
    """
    start = metrics.starts[-1] if metrics.starts else {}
    return render_html(
        Path(__file__).with_name(TEMPLATE),
        {"visible": escape_control_characters},
        name=str(metrics.path.parent),
        layout=layout_name(_mapping(start.get("layout"))),
        figures=run_figures(metrics, generations),
        loss=loss_chart(metrics),
        charts=small_charts(metrics, generations),
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
