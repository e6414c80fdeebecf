"""Entry point of `python -m mindspeed_llm.recipe RECIPE` and `mindspeed-llm recipe RECIPE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mindspeed_llm.arguments.dataclass_parser import parse_groups
from mindspeed_llm.console.logging_config import configure_logging
from mindspeed_llm.entry_point import run_command
from mindspeed_llm.recipe.recipe_file import read_recipe
from mindspeed_llm.recipe.run_recipe import run_recipe

PROGRAM = "mindspeed_llm.recipe"
DESCRIPTION = "Preprocess, train, evaluate and export as a YAML file describes; steps that are complete are skipped."


@dataclass
class RecipeArguments:
    """Recipe."""

    recipe: str = field(metadata={"positional": True})
    """YAML file of the recipe (docs/recipes.md)."""
    dry_run: bool = False
    """Check the recipe and print the steps that would run and their commands, with the plan of the training if its data
    exist. Nothing is written."""


def main(argv: Sequence[str], program: str = PROGRAM) -> None:
    """Run a recipe.

    Args:
        argv: command-line arguments without the program's name.
        program: name of the program for the help.

    Raises:
        UserError: the recipe is invalid, or a step failed.
    """
    configure_logging(info_stream="stdout")
    (arguments,) = parse_groups(argv, [RecipeArguments], program, DESCRIPTION)
    run_recipe(read_recipe(Path(arguments.recipe)), arguments.dry_run)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:], PROGRAM))
