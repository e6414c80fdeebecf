"""Reports of training runs and of packed data: tables, pictures and pages.

    read_metrics(run)                 metrics.jsonl as numbers by iteration
    draw_loss(run)                    loss.png of one run
    draw_runs([run, run], out)        comparison of several runs
    draw_packing(manifest, out)       packing.png from the manifest of packed files
    write_run_page(run)               report.html: curves, packing, and what the model answered when
    write_run_svg(run)                report.svg: the main parts of that page as a picture
    runs_table(names, metrics)        the table of `python -m mindspeed_llm.reports RUN [RUN ...]`

The package does not import torch, so a run can be analysed on any machine. matplotlib is imported by the drawing
functions when they are called.
"""

from mindspeed_llm.reports.loss_plot import draw_loss, draw_runs, run_names
from mindspeed_llm.reports.packing_plot import compute_packing_statistics, draw_packing
from mindspeed_llm.reports.run_metrics import read_metrics
from mindspeed_llm.reports.run_page import write_run_page
from mindspeed_llm.reports.run_svg import write_run_svg
from mindspeed_llm.reports.runs_table import runs_table, summarize_run

__all__ = [
    "compute_packing_statistics",
    "draw_loss",
    "draw_packing",
    "draw_runs",
    "read_metrics",
    "run_names",
    "runs_table",
    "summarize_run",
    "write_run_page",
    "write_run_svg",
]
