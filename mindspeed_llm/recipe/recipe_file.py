"""Read a recipe: the YAML file that describes the way from raw data to an exported model.

    output: ./my_run        # directory of everything that the recipe writes
    processes: 2            # ranks of the training, on this machine
    preprocess:             # flags of preprocess_data.py; without the section the data are packed already
      input: rows.jsonl
    train:                  # flags of pretrain_gpt.py
      lr: 1e-5
    export:                 # flags of convert_ckpt.py; without the section nothing is exported

Every mistake in the file is reported with its line, and all of them together, before the first step starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindspeed_llm.arguments import preprocess_arguments
from mindspeed_llm.arguments.config_file import (
    ExpandedCommand,
    add_entries,
    flag_texts,
    mapping_entries,
    read_yaml_mapping,
)
from mindspeed_llm.arguments.convert_arguments import ConvertArguments
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.flag import Flag, declared_flags
from mindspeed_llm.arguments.foreign_flags import CONVERSION, PREPROCESSING, refusal_of
from mindspeed_llm.arguments.pretrain_arguments import GROUPS
from mindspeed_llm.arguments.pretrain_parser import unsupported_flag_reason
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.errors import ConfigError

if TYPE_CHECKING:
    from yaml.nodes import Node


@dataclass
class RecipeSettings:
    """Keys at the top of a recipe."""

    output: str
    """Directory of everything that the recipe writes."""
    processes: int = 1
    """Number of processes of the training, on this machine."""


SECTIONS: dict[str, tuple[type, ...]] = {
    "preprocess": tuple(preprocess_arguments.GROUPS),
    "train": (*GROUPS, RawDataArguments),
    "export": (ConvertArguments,),
}
# Section → function that returns the reason why an undeclared flag of its program is refused.
REFUSALS = {
    "preprocess": refusal_of(PREPROCESSING),
    "train": unsupported_flag_reason,
    "export": refusal_of(CONVERSION),
}


@dataclass(frozen=True)
class Recipe:
    """A recipe whose values are not checked by the programs yet.

    Attributes:
        path: the file.
        settings: keys at the top.
        sections: name of a section → arguments of its program.
    """

    path: Path
    settings: RecipeSettings
    sections: dict[str, list[str]]

    @property
    def output(self) -> Path:
        """Directory of everything that the recipe writes."""
        return Path(self.settings.output)


def section_flags(name: str) -> tuple[Flag, ...]:
    """Return the flags of the program of a section."""
    return tuple(flag for group in SECTIONS[name] for flag in declared_flags(group))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: the file cannot be read, or has wrong keys or values. One line per problem.
    """
    problems: list[str] = []
    entries = read_yaml_mapping(path, problems, "recipe ")
    known = {flag.field.name: flag for flag in declared_flags(RecipeSettings)}
    sections: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for key, node, where in entries:
        if key in SECTIONS:
            sections[key] = _section(key, node, path, problems)
        elif key in known:
            texts, problem = flag_texts(known[key], node)
            values[key] = "" if problem else texts[0]
            problems += [f"{where}: {key} {problem}"] if problem else []
        else:
            problems.append(f"{where}: {_unknown(key, [*known, *SECTIONS])}")
    processes = values.get("processes", "1")
    if processes and not (processes.isdecimal() and int(processes) > 0):
        problems.append(f"{path}: processes {processes}: not a whole number of at least 1")
    if not problems:
        if not values.get("output"):
            problems.append(f"{path}: output is missing: give the directory for everything that the recipe writes")
        if "train" not in sections:
            problems.append(f"{path}: the section train is missing: give the flags of the training")
    if problems:
        values_of_sections = [value_problems(path, name, words) for name, words in sections.items()]
        raise ConfigError([*problems, *(line for lines in values_of_sections for line in lines)])
    return Recipe(path, RecipeSettings(values["output"], int(processes)), sections)


def value_problems(path: Path, section: str, words: Sequence[str]) -> list[str]:
    """Return the problems of the single values of a section, without flags that are missing.

    They can be reported while other parts of the recipe, which complete the section, are unknown.

    Args:
        path: the file, for messages.
        section: name of the section.
        words: arguments of the section.
    """
    found = parse_known_groups(words, SECTIONS[section], "", "").problems
    return [f"{path}: {section}: {problem}" for problem in found if " is required" not in problem]


def _section(name: str, node: Node, path: Path, problems: list[str]) -> list[str]:
    """Return the arguments of a section."""
    command = ExpandedCommand([])
    refusal = REFUSALS.get(name, lambda _: None)
    entries = mapping_entries(node, str(path), problems)
    add_entries(
        command, [(key, value, f"{where}: {name}") for key, value, where in entries], section_flags(name), refusal
    )
    problems += command.problems
    return command.arguments


def _unknown(key: str, names: Iterable[str]) -> str:
    """Return the message for a key that a recipe does not have."""
    names = list(names)
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"{key} is not a key of a recipe; " + (
        f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(names)}"
    )
