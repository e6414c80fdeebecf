"""Run one of the programs by its name: the installed command `mindspeed-llm`, and `python -m mindspeed_llm`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from mindspeed_llm import __version__
from mindspeed_llm.console.text_tables import align_columns
from mindspeed_llm.entry_point import end_process, ensure_standard_streams, flush_output, run_command, run_program
from mindspeed_llm.errors import ConfigError

COMMAND = "mindspeed-llm"


@dataclass(frozen=True)
class Program:
    """One program of the command.

    Attributes:
        name: the word after `mindspeed-llm`.
        module: module whose function `main` takes the arguments and the name of the program.
        description: one line for `--help`.
        interruptible: whether SIGINT and SIGTERM end it by an exception.
    """

    name: str
    module: str
    description: str
    interruptible: bool = False


PROGRAMS = (
    Program(
        "preprocess",
        "mindspeed_llm.programs.preprocess",
        "convert raw data into packed files or document files",
        interruptible=True,
    ),
    Program("inspect", "mindspeed_llm.programs.inspect_packs", "show the content of packed files", interruptible=True),
    Program("pretrain", "mindspeed_llm.programs.pretrain", "pretrain or fine-tune a model; start it with torchrun"),
    Program(
        "convert", "mindspeed_llm.programs.convert_weights", "convert weights between Hugging Face and megatron-core"
    ),
    Program("report", "mindspeed_llm.reports.__main__", "print a table of runs and draw them"),
    Program("verify", "mindspeed_llm.verify.__main__", "compare a model with transformers"),
    Program("recipe", "mindspeed_llm.recipe.__main__", "preprocess, train, evaluate and export as a file describes"),
)


def main() -> NoReturn:
    """Run the program that the command line names, and end the process with its status."""
    ensure_standard_streams()
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if any(program.name == name for program in PROGRAMS):
        status = run_named(name, arguments, f"{COMMAND} {name}")
    elif name in ("-h", "--help"):
        status = run_program(print_help, COMMAND)
    elif name == "--version":
        print(f"{COMMAND} {__version__}")
        status = 0
    else:
        status = run_program(lambda: refuse(name), COMMAND)
    end_process(flush_output(status))


def run_named(name: str, argv: Sequence[str], shown: str) -> int:
    """Run one of the programs and return its exit status.

    Args:
        name: name of the program.
        argv: command-line arguments without the program's name.
        shown: name of the program for the help and for error messages.
    """
    program = next(program for program in PROGRAMS if program.name == name)
    # Imported late: each program imports only what it needs, and most of them no torch.
    module = importlib.import_module(program.module)
    return run_command(module.main, argv, shown, interruptible=program.interruptible)


def print_help() -> None:
    """Print the names of the programs."""
    rows = align_columns([(f"  {program.name}", program.description) for program in PROGRAMS], left=2)
    print(f"usage: {COMMAND} PROGRAM [flags]\n\nprograms:\n" + "\n".join(rows))
    print(f"\n{COMMAND} PROGRAM --help lists the flags of a program.")


def refuse(name: str) -> NoReturn:
    """Report that no program has this name.

    Args:
        name: the first argument of the command; empty if there is none.

    Raises:
        ConfigError: always.
    """
    names = [program.name for program in PROGRAMS]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    reason = f"{name}: not a program of {COMMAND}" if name else "the name of a program is missing"
    instead = f"did you mean {nearest[0]}?" if nearest else f"the programs are {', '.join(names)}"
    raise ConfigError(f"{reason}; {instead}")
