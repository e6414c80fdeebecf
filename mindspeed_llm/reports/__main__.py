"""Entry point of `python -m mindspeed_llm.reports RUN [RUN ...]`: print a table of the runs and draw them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.arguments.dataclass_parser import parse_groups
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.entry_point import run_program
from mindspeed_llm.reports.loss_plot import draw_loss, draw_runs, run_names
from mindspeed_llm.reports.run_metrics import read_metrics
from mindspeed_llm.reports.runs_table import runs_table

logger = logging.getLogger("mindspeed_llm.reports")  # __name__ is __main__ here

PROGRAM = "python -m mindspeed_llm.reports"


@dataclass
class ReportArguments:
    """Runs and output file."""

    run: list[str] = field(metadata={"positional": True})
    "Run directories (--run-dir of the training), or --save directories that contain one."
    out: str | None = None
    "Output file. Default: loss.png in the run directory for one run, runs.png in the current directory for several."
    no_picture: bool = False
    "Print only the table."


def run(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Run the program and return the exit status.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for messages.
    """
    return run_program(lambda: main(argv, program), program)


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Print the table of the runs, then draw them.

    Args:
        argv: command-line arguments, without the name of the program.
        program: name of the program for the help.

    Raises:
        ConfigError: No run directory is given, or a flag is wrong.
        DataError: A run directory has no metrics.
    """
    description = "Print a table of one or several runs and draw them."
    configure_logging()
    (arguments,) = parse_groups(argv, [ReportArguments], program, description)
    run_dirs = [Path(argument) for argument in arguments.run]
    runs = [read_metrics(run_dir) for run_dir in run_dirs]
    folders = [run.path.parent for run in runs]
    print(runs_table(run_names(folders), runs))
    for run in runs:
        if run.damaged:
            logger.warning(f"{run.path}: {run.damaged} damaged line(s) skipped")
    if not arguments.no_picture:
        if len(runs) == 1:
            picture = draw_loss(folders[0], arguments.out)
        else:
            picture = draw_runs(folders, arguments.out or "runs.png")
        print(f"picture: {picture}")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
