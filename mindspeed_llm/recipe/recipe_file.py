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

from mindspeed_llm.arguments.config_file import (
    ExpandedCommand,
    add_entries,
    flag_texts,
    mapping_entries,
    read_yaml_mapping,
)
from mindspeed_llm.arguments.flag import declared_flags
from mindspeed_llm.arguments.foreign_flags import CONVERSION, PREPROCESSING, refusal_of
from mindspeed_llm.arguments.pretrain_parser import unsupported_flag_reason
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.recipe.section_check import SECTIONS, reference_problems, section_flags, value_problems

if TYPE_CHECKING:
    from yaml.nodes import Node


@dataclass
class RecipeSettings:
    """Keys at the top of a recipe."""

    output: str
    """Directory of everything that the recipe writes."""
    processes: int = 1
    """Number of processes of the training, on this machine."""


# Section → its program, the word after `mindspeed-llm`.
PROGRAMS = {"preprocess": "preprocess", "train": "pretrain", "export": "convert"}
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


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: the file cannot be read, or has wrong keys or values. One line per problem.
    """
    problems: list[str] = []
    entries = read_yaml_mapping(path, problems, "recipe ")
    refuse_file_of_flags(path, [key for key, _, _ in entries])
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
        references = reference_problems(path, values.get("output", ""), sections)
        for name, words in sections.items():
            problems += value_problems(path, name, words) + references.get(name, [])
        raise ConfigError(problems)
    return Recipe(path, RecipeSettings(values["output"], int(processes)), sections)


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


def refuse_file_of_flags(path: Path, keys: Sequence[str]) -> None:
    """Refuse a file for --config, whose keys are flags, with one message instead of one per key.

    Args:
        path: the file.
        keys: keys at the top.

    Raises:
        ConfigError: the file has no section, and most of its unknown keys are flags of a program.
    """
    unknown = [key for key in keys if key not in {flag.field.name for flag in declared_flags(RecipeSettings)}]
    if not unknown or any(key in SECTIONS for key in keys):
        return
    counts = {name: sum(_is_flag(key, name) for key in unknown) for name in PROGRAMS}
    section = max(PROGRAMS, key=lambda name: (counts[name], name == "train"))
    if 2 * counts[section] > len(unknown):
        raise ConfigError(
            f"{path}: not a recipe, but a file for --config: its keys are flags of {PROGRAMS[section]}; run "
            f"'mindspeed-llm {PROGRAMS[section]} --config {path}', or move the keys into the section {section} of a "
            "recipe"
        )


def _is_flag(key: str, section: str) -> bool:
    """Return whether a key is a flag of the program of a section."""
    names = {name.replace("_", "-") for flag in section_flags(section) for name in flag.names}
    return f"--{key}".replace("_", "-") in names


def _unknown(key: str, names: Iterable[str]) -> str:
    """Return the message for a key that a recipe does not have."""
    names = list(names)
    if sections := [name for name in SECTIONS if _is_flag(key, name)]:
        return f"{key} is not a key of a recipe; it is a flag: move it into the section {' or '.join(sections)}"
    nearest = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f"{key} is not a key of a recipe; " + (
        f"did you mean {nearest[0]}?" if nearest else f"the keys are {', '.join(names)}"
    )
