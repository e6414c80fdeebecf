"""Render the main parts of a run's page as one SVG picture, for a README or a message.

The picture has no script, no external font and no embedded bitmap. It shows some of the prompts at some of the
evaluations only; `report.html` shows all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mindspeed_llm.errors import escape_control_characters
from mindspeed_llm.html_template import render_html
from mindspeed_llm.reports.generations import AskedPrompt, Generations
from mindspeed_llm.reports.loss_plot import layout_name
from mindspeed_llm.reports.run_charts import NARROW, WIDE, loss_chart, run_figures, small_charts
from mindspeed_llm.reports.run_metrics import RunMetrics
from mindspeed_llm.reports.run_page import write_report

TEMPLATE = "run_page.svg"  # beside this file
PICTURE_NAME = "report.svg"
PROMPTS, EVALUATIONS, CHARTS = 6, 4, 3  # maximum numbers that fit
MARGIN, WIDTH = 20, int(WIDE[0]) + 40
COLUMN, CHARACTER = 165, 7.3  # widths of a column and of a character of the table
LINE = 22  # height of a row

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """A text of the table.

    Attributes:
        x: left end.
        text: the text, shortened to its column.
        mark: "good" for an exact answer, "bad" for another one, "" without an expected answer.
    """

    x: float
    text: str
    mark: str = ""


def write_run_svg(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the picture of a run; an existing file is replaced only by a complete one.

    Args:
        run_dir: run directory, which contains metrics.jsonl.
        out: output file; the default is report.svg in the run directory.

    Returns:
        Path of the picture.

    Raises:
        DataError: the run has no metrics, or the file cannot be written.
    """
    return write_report(run_dir, out, PICTURE_NAME, render_run_svg)


def render_run_svg(metrics: RunMetrics, generations: Generations) -> str:
    """Render the picture; the template escapes all text of the run.

    Args:
        metrics: metrics of the run.
        generations: answers of the run.
    """
    layout = metrics.starts[-1].get("layout") if metrics.starts else None
    figures, x = [], float(MARGIN)
    for value, label in run_figures(metrics, generations):
        width = max(10.5 * len(value), 6.3 * len(label)) + 26
        figures.append((x, width, value, label))
        x += width + 10
    charts = small_charts(metrics, generations)[:CHARTS]
    gap = (WIDE[0] - len(charts) * NARROW[0]) / max(len(charts) - 1, 1)
    return render_html(
        Path(__file__).with_name(TEMPLATE),
        {},
        layout=layout_name(layout if isinstance(layout, dict) else {}),
        figures=figures,
        rows=table_rows(generations),
        loss=loss_chart(metrics),
        charts=[(MARGIN + number * (NARROW[0] + gap), chart) for number, chart in enumerate(charts)],
        chart_heights=(WIDE[1], NARROW[1]),
        margin=MARGIN,
        width=WIDTH,
        line=LINE,
    )


def table_rows(generations: Generations) -> list[list[Cell]]:
    """Return the table of prompts and answers, the heading first; an empty list without prompts.

    Args:
        generations: answers of the run.
    """
    if not generations.prompts:
        return []
    has_expected = any(prompt.expected is not None for prompt in generations.prompts)
    iterations = _spread(generations.iterations, EVALUATIONS)
    texts = [["prompt", *(["expected"] if has_expected else []), *(f"after {number:,}" for number in iterations)]]
    marks = [[""] * len(texts[0])]
    for prompt in _spread(generations.prompts, PROMPTS):
        answers = [_answer(prompt, iteration) for iteration in iterations]
        texts.append(
            [prompt.prompt, *([prompt.expected or ""] if has_expected else []), *(text for text, _ in answers)]
        )
        marks.append([""] * (len(texts[0]) - len(answers)) + [mark for _, mark in answers])
    first = WIDTH - 2 * MARGIN - COLUMN * (len(texts[0]) - 1)  # the prompts have the rest of the width
    places = [MARGIN, *(MARGIN + first + COLUMN * number for number in range(len(texts[0]) - 1))]
    return [
        [
            Cell(x, _shortened(text, first if number == 0 else COLUMN), mark)
            for number, (x, text, mark) in enumerate(zip(places, row, row_marks, strict=True))
        ]
        for row, row_marks in zip(texts, marks, strict=True)
    ]


def _answer(prompt: AskedPrompt, iteration: int) -> tuple[str, str]:
    """Return the answer to a prompt at an evaluation and its mark."""
    answer = prompt.answers.get(iteration)
    if answer is None:
        return "", ""
    if answer.exact is None:
        return answer.output, ""
    return ("✓ " if answer.exact else "✗ ") + answer.output, "good" if answer.exact else "bad"


def _spread(values: Sequence[T], number: int) -> list[T]:
    """Return at most `number` of the values, evenly spread, with the first and the last one."""
    if len(values) <= number:
        return list(values)
    return [values[round(index * (len(values) - 1) / (number - 1))] for index in range(number)]


def _shortened(text: str, width: float) -> str:
    """Return a text in one line that fits a column."""
    text = escape_control_characters(" ".join(text.split()))
    most = int((width - 10) / CHARACTER)
    return text if len(text) <= most else text[: most - 1] + "…"
