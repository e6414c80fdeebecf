"""Entry point of `python -m mindspeed_llm.reports RUN [RUN ...]`: print a table, draw the runs, write their pages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.arguments.dataclass_parser import parse_groups
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.entry_point import run_command
from mindspeed_llm.errors import ConfigError, UserError
from mindspeed_llm.reports.loss_plot import draw_loss, draw_runs, run_names
from mindspeed_llm.reports.run_metrics import RunMetrics, read_metrics
from mindspeed_llm.reports.run_page import write_run_page
from mindspeed_llm.reports.run_svg import write_run_svg
from mindspeed_llm.reports.runs_table import runs_table

logger = logging.getLogger("mindspeed_llm.reports")  # __name__ is __main__ here

PROGRAM = "python -m mindspeed_llm.reports"


@dataclass
class ReportArguments:
    """Runs and output file."""

    run: list[str] = field(metadata={"positional": True})
    "Run directories (--run-dir of the training), or --save directories that contain one."
    out: str | None = None
    """Output file. Default: loss.png in the run directory for one run, runs.png in the current directory for several;
    with --html report.html and with --svg report.svg in each run directory."""
    html: bool = False
    """Write the page of each run instead of a picture: curves, throughput, packing, and what the model answered when
    (--generate-prompts), in one HTML file without scripts."""
    svg: bool = False
    "Write the main parts of that page as an SVG picture, for a README or a message."
    no_picture: bool = False
    "Print only the table."


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Print the table of the runs, then draw them or write their pages.

    Args:
        argv: command-line arguments, without the name of the program.
        program: name of the program for the help.

    Raises:
        ConfigError: No run directory is given, a run directory has no metrics, or a flag is wrong.
        DataError: A page cannot be written.
    """
    description = "Print a table of one or several runs, and draw them or write their page."
    configure_logging()
    (arguments,) = parse_groups(argv, [ReportArguments], program, description)
    run_dirs = [Path(argument) for argument in arguments.run]
    writes_several = len(run_dirs) > 1 or (arguments.html and arguments.svg)
    problems: list[str] = []
    if arguments.out is not None and (arguments.html or arguments.svg) and writes_several:
        problems.append("--html and --svg write a file for each run; leave --out out, or give one run and one of them")
    runs = read_runs(run_dirs, problems)
    folders = [run.path.parent for run in runs]
    print(runs_table(run_names(folders), runs))
    for run in runs:
        if run.damaged:
            logger.warning(f"{run.path}: {run.damaged} damaged line(s) skipped")
    if arguments.html or arguments.svg:
        for folder in folders:
            if arguments.html:
                print(f"page: {write_run_page(folder, arguments.out)}")
            if arguments.svg:
                print(f"picture: {write_run_svg(folder, arguments.out)}")
    elif not arguments.no_picture:
        if len(runs) == 1:
            picture = draw_loss(folders[0], arguments.out)
        else:
            picture = draw_runs(folders, arguments.out or "runs.png")
        print(f"picture: {picture}")


def read_runs(run_dirs: Sequence[Path], problems: Sequence[str]) -> list[RunMetrics]:
    """Read the metrics of several runs.

    Args:
        run_dirs: run directories, or --save directories that contain one.
        problems: problems of the flags, which are reported together with those of the runs.

    Raises:
        ConfigError: run directories have no metrics, or there are problems of the flags. One line per problem.
    """
    runs, found = [], []
    for run_dir in run_dirs:
        try:
            runs.append(read_metrics(run_dir))
        except UserError as error:  # noqa: PERF203 - report all runs together
            found.append(str(error))
    if found or problems:
        raise ConfigError([*found, *problems])
    return runs


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], PROGRAM))
