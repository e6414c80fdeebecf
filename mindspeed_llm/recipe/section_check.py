"""Check the sections of a recipe: the values, names and paths of each, before any step starts.

The programs find the same problems with the same functions, but each only when its turn comes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_llm.arguments import preprocess_arguments
from mindspeed_llm.arguments.command_words import value_of
from mindspeed_llm.arguments.convert_arguments import ConvertArguments, missing_directories
from mindspeed_llm.arguments.data_arguments import parse_data_path
from mindspeed_llm.arguments.data_rules import PATHS
from mindspeed_llm.arguments.dataclass_parser import parse_known_groups
from mindspeed_llm.arguments.flag import Flag, declared_flags
from mindspeed_llm.arguments.missing_files import missing_files, missing_load
from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments, missing_inputs
from mindspeed_llm.arguments.pretrain_arguments import GROUPS, PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments, names_raw_data
from mindspeed_llm.arguments.raw_data_rules import preprocessing_command
from mindspeed_llm.arguments.recorded_flags import find_recorded_flags
from mindspeed_llm.preprocessing import name_problems

SECTIONS: dict[str, tuple[type, ...]] = {
    "preprocess": tuple(preprocess_arguments.GROUPS),
    "train": (*GROUPS, RawDataArguments),
    "export": (ConvertArguments,),
}
# Flags of directories and prefixes that one step writes and a later one may read.
PASSED_ON = {"preprocess": ("--output-prefix",), "train": ("--save", "--save-hf", "--save-hf-merged", "--run-dir")}


def section_flags(name: str) -> tuple[Flag, ...]:
    """Return the flags of the program of a section."""
    return tuple(flag for group in SECTIONS[name] for flag in declared_flags(group))


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


def reference_problems(path: Path, output: str, sections: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return, per section, the problems of what its flags refer to: files, directories, handlers and templates.

    Invalid values are passed over; `value_problems` reports them. What an earlier step of the recipe writes need not
    exist.

    Args:
        path: the file, for messages.
        output: directory of everything that the recipe writes; "" if it is unknown.
        sections: name of a section → its own arguments, without those that follow from other sections.
    """
    written = _written(output, sections)
    checks: dict[str, Callable[[Sequence[str]], list[str]]] = {
        "preprocess": _problems_of_preprocess,
        "train": lambda words: _problems_of_train(words, written, output),
        "export": lambda words: missing_directories(_groups("export", words)[0], written),
    }
    # Without `output` it is unknown what the steps write and read.
    names = [name for name in sections if output or name == "preprocess"]
    return {name: [f"{path}: {name}: {problem}" for problem in checks[name](sections[name])] for name in names}


def _groups(section: str, words: Sequence[str]) -> list[Any]:
    """Return the parsed arguments of a section; a flag with an invalid value has its default."""
    return list(parse_known_groups(words, SECTIONS[section], "", "").groups)


def _problems_of_preprocess(words: Sequence[str]) -> list[str]:
    arguments = PreprocessArguments(*_groups("preprocess", words))
    return missing_inputs(arguments) + ([] if arguments.input.merge_group_keys else name_problems(arguments))


def _problems_of_train(words: Sequence[str], written: Callable[[str], bool], output: str) -> list[str]:
    recorded = find_recorded_flags(words)
    *groups, raw_data = _groups("train", [*(recorded.arguments if recorded else []), *words])
    arguments = PretrainArguments.from_groups(groups, 1, frozenset())
    arguments.raw_data = raw_data
    load = missing_load(arguments.checkpoint.load, value_of("--save", words) or f"{output}/checkpoints")
    problems = [*([load] if load else []), *missing_files(arguments, written)]
    names = [name for values in PATHS.values() for name in parse_data_path(values(arguments))[1]]
    if raw_data.given and any(names_raw_data(name) for name in names):
        problems += name_problems(preprocessing_command(arguments, names[0], "packed"))
    return problems


def _written(output: str, sections: Mapping[str, Sequence[str]]) -> Callable[[str], bool]:
    """Return the function that tells whether a step of the recipe will write a path or prefix."""
    given = [value_of(flag, sections.get(name, ())) for name, flags in PASSED_ON.items() for flag in flags]
    own = [f"{output}/{name}" for name in ("data/rows", "checkpoints", "run")]
    places = [os.path.normpath(place) for place in (*given, *own) if place]
    prefix = os.path.normpath(value_of("--output-prefix", sections.get("preprocess", ())) or own[0])

    def is_written(name: str) -> bool:
        path = os.path.normpath(name)
        return any(path == place or path.startswith(f"{place}/") for place in places) or path.startswith(f"{prefix}_")

    return is_written
