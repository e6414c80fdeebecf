"""Parse command lines into dataclasses: one class is one group of `--help`, one field is one flag.

    @dataclass
    class PackArguments:
        '''Packing.'''

        seq_length: int
        '''Slots of a pack.'''
        neat_pack: bool = False
        '''Number the samples of a pack, so that each sample attends only to itself.'''

declares `--seq-length N` (required, because the field has no default) and the switch `--neat-pack`. The string below a
field is its help text.

| type | flag |
|---|---|
| `bool = False` | switch: `--flag` |
| `bool = True`, `bool | None` | `--flag {true,false}`; with metadata `negated="--no-flag"` that switch instead |
| `int`, `float`, `str`, each also with `| None` | `--flag VALUE` |
| `Literal["a", "b"]`, or metadata `choices` | `--flag {a,b}` |
| `list[str]`, `list[int]`, `list[float]` | `--flag VALUE [VALUE ...]`; `extend=True`: a repeated flag adds values |

Metadata: `choices`, `metavar`, `name` (of the flag, without --), `flags` (alternative spellings), `negated`, `extend`,
`positional` (a value without a flag), `not_built` (values that are refused as known but not supported yet), and the
bounds of a number (bounds.py). Other keys belong to the program.

argparse splits the command line. argparse stops at the first error, so this module validates the values itself and
reports all problems of a command line together.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mindspeed_llm.arguments.bounds import violated_bound
from mindspeed_llm.arguments.config_file import BOOLEANS, CONFIG, expand_config
from mindspeed_llm.arguments.flag import KIND_NAMES, NEGATIVE_NUMBER, Flag, declared_flags
from mindspeed_llm.arguments.foreign_flags import flags_in
from mindspeed_llm.errors import ConfigError

# argparse treats these as flags, but they are meant as values: -1,2,3 or -1e-4. -inf and -nan are matched as well, so
# that they are refused as values and not reported as unknown flags.
BEGINS_AS_NUMBER = re.compile(r"-(\.?\d|(inf|infinity|nan)$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class ParsedGroups:
    """Result of parsing a command line that may contain errors.

    Attributes:
        groups: one instance per dataclass. Invalid or missing values are replaced by defaults or placeholders.
        problems: one line per problem.
        invalid_flags: flags whose value is such a replacement. Further checks of these flags are meaningless.
        given: flags that the command line or its --config file contains.
        origins: flag of the --config file → file and line.
    """

    groups: list[Any]
    problems: list[str]
    invalid_flags: frozenset[str]
    given: frozenset[str]
    origins: Mapping[str, str]


def parse_groups(argv: Sequence[str], groups: Sequence[type], program: str, description: str) -> list[Any]:
    """Parse a command line into one instance of each dataclass.

    `--help` prints the help and exits with status 0.

    Args:
        argv: command-line arguments without the program's name.
        groups: dataclasses that declare the flags.
        program: name of the program, for the help.
        description: description of the program, for the help.

    Raises:
        ConfigError: flags are unknown, missing or have invalid values. The error lists all problems.
    """
    parsed = parse_known_groups(argv, groups, program, description)
    if parsed.problems:
        raise ConfigError(parsed.problems)
    return parsed.groups


def parse_known_groups(
    argv: Sequence[str],
    groups: Sequence[type],
    program: str,
    description: str,
    refusal: Callable[[str], str | None] = lambda name: None,
    origins: Mapping[str, str] | None = None,
    invalid: Collection[str] = (),
) -> ParsedGroups:
    """Parse a command line and return its problems, so that the caller can add its own before raising an error.

    `--help` prints the help and exits with status 0.

    Args:
        argv: command-line arguments without the program's name.
        groups: dataclasses that declare the flags.
        program: name of the program, for the help.
        description: description of the program, for the help.
        refusal: returns the reason why an undeclared flag is refused; None if the flag is simply unknown.
        origins: flag → file and line, if `expand_config` has already replaced --config by the values of its file.
        invalid: flags of which a problem is known already; none of them is reported as missing.
    """
    flags = {group: declared_flags(group) for group in groups}
    # The help is printed even if other arguments are invalid.
    if any(argument in ("-h", "--help") for argument in argv):
        _parser(flags, program, description, with_help=True).print_help()
        sys.exit(0)

    every = [flag for group in groups for flag in flags[group]]
    known = {name: flag for flag in every for name in flag.names}
    assert len(known) == sum(len(flag.names) for flag in every), "two fields with one flag"
    command = expand_config(argv, every, refusal)
    origins = {**(origins or {}), **command.origins}
    problems = list(command.problems)
    invalid_flags = {*invalid, *command.invalid_flags}
    known_arguments = _known_arguments(command.arguments, known, refusal, problems, invalid_flags)
    namespace, strays = _parser(flags, program, description).parse_known_args(known_arguments)
    problems += [f"'{stray}' belongs to no flag; remove it, or quote the value that it is part of" for stray in strays]

    instances = []
    for group in groups:
        values: dict[str, Any] = {}
        for flag in flags[group]:
            text = getattr(namespace, flag.field.name, None)
            if flag.positional and not text:
                text = command.positional.get(flag.name, text)
            if text is None and not flag.required:
                continue
            if text is None:
                # A flag in invalid_flags is missing because it was misspelt, which is already reported.
                if flag.name not in invalid_flags:
                    problems.append(f"{flag.name} is required{_hint(flag)}")
                value = None
            else:
                found: list[str] = []
                value = _value(flag, text, found)
                problems += [f"{origins[flag.name]}: {line}" if flag.name in origins else line for line in found]
            if value is None:
                invalid_flags.add(flag.name)
                value = _placeholder(flag) if flag.required else None
            if value is not None:
                values[flag.field.name] = value
        instances.append(group(**values))
    given = frozenset(flag.name for flag in every if hasattr(namespace, flag.field.name))
    return ParsedGroups(instances, problems, frozenset(invalid_flags), given, origins)


def _parser(
    flags: dict[type, tuple[Flag, ...]], program: str, description: str, with_help: bool = False
) -> argparse.ArgumentParser:
    """Build an argparse parser that reports no errors: values remain text, and missing flags have no attribute."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        usage=f"{program} [flags]" if with_help else None,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    for group, group_flags in flags.items():
        title = (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")
        section = parser.add_argument_group(title)
        helps = field_docstrings(group) if with_help else {}
        for flag in group_flags:
            options = _options(flag, with_help)
            if with_help:
                options["help"] = _help_text(flag, helps.get(flag.field.name, ""))
            if flag.positional:
                section.add_argument(flag.field.name, **options)
            else:
                section.add_argument(*flag.names, dest=flag.field.name, **options)
    if with_help:
        text = "YAML file with values of flags, named as here without --. The command line wins."
        parser.add_argument_group("File of flags").add_argument(CONFIG, metavar="FILE", help=text)
    return parser


def _options(flag: Flag, with_help: bool) -> dict[str, Any]:
    """Return the keyword arguments of `add_argument` for a flag.

    For the help they describe the flag as it is. For parsing they also accept a flag without its value: argparse would
    exit at the first missing value, whereas `_value` reports it together with all other problems.
    """
    if flag.switch is not None:
        return {"action": "store_const", "const": flag.switch}
    options: dict[str, Any] = {"metavar": _metavar(flag)}
    if flag.is_list:
        options["nargs"] = "+" if with_help else "*"
        if flag.field.metadata.get("extend"):
            options["action"] = "extend"
    elif flag.positional:
        options["nargs"] = "?"
    elif not with_help:
        options |= {"nargs": "?", "const": ""}
    return options


def _known_arguments(
    argv: Sequence[str],
    known: dict[str, Flag],
    refusal: Callable[[str], str | None],
    problems: list[str],
    invalid_flags: set[str],
) -> list[str]:
    """Return `argv` without unknown flags and their values, and without switches that are given a value."""
    result: list[str] = []
    skipping = False  # inside the values of an unknown flag
    has_positional = any(flag.positional for flag in known.values())
    for argument in argv:
        # The same distinction between values and flags as in argparse.
        if not argument.startswith("-") or argument == "-" or " " in argument or NEGATIVE_NUMBER.fullmatch(argument):
            switch = known.get(result[-1]) if result and not skipping else None
            if switch is not None and switch.switch is not None and argument.lower() in BOOLEANS and not has_positional:
                # Other frameworks write --bf16 true.
                problems.append(_switch_with_value(result.pop()))
                invalid_flags.add(switch.name)
                skipping = True
            elif not skipping:
                result.append(argument)
            continue
        previous = known.get(result[-1]) if result and not skipping else None
        takes_value = previous is not None and previous.switch is None and not previous.is_list
        if BEGINS_AS_NUMBER.match(argument) and takes_value:
            # With "=" argparse cannot mistake the value for a flag.
            result[-1] += f"={argument}"
            continue
        name, equals, _ = argument.partition("=")
        flag = known.get(name)
        # The values of an unknown flag are dropped together with it, because they would only be reported a second time.
        skipping = flag is None
        if flag is None:
            problems.append(_undeclared(name, known, refusal, invalid_flags))
        elif flag.switch is not None and equals:
            problems.append(_switch_with_value(name))
            invalid_flags.add(flag.name)
        else:
            result.append(argument)
    return result


def _switch_with_value(name: str) -> str:
    return f"{name} takes no value; write {name} alone, or leave it out"


def _undeclared(
    name: str, known: dict[str, Flag], refusal: Callable[[str], str | None], invalid_flags: set[str]
) -> str:
    """Return the message about an undeclared flag.

    Flags that the message names were probably meant: they are added to `invalid_flags`, so that they are not reported
    as missing or as breaking a rule as well.
    """
    reason = refusal(name)
    if reason is None:
        return _unknown(name, known, invalid_flags)
    invalid_flags.update(known[flag].name for flag in flags_in(reason, known))
    return reason


def _unknown(name: str, known: dict[str, Flag], invalid_flags: set[str]) -> str:
    spelled = "--" + name.lstrip("-").replace("_", "-")
    nearest = difflib.get_close_matches(spelled, [*known, CONFIG], n=1, cutoff=0.6)
    if not nearest:
        return f"{name} is not a flag of this program; --help lists them"
    if nearest[0] in known:
        invalid_flags.add(known[nearest[0]].name)
    return f"{name} is not a flag of this program; did you mean {nearest[0]}?"


def _value(flag: Flag, text: Any, problems: list[str]) -> Any:
    """Convert the text of a flag to its value; if it is invalid, append to `problems` and return None."""
    if flag.switch is not None:
        return text
    # A boolean flag without a value means true.
    if text in ("", []) and not (flag.kind is bool and not flag.is_list):
        problems.append(f"{flag.name} needs a value{_hint(flag)}")
        return None
    if not flag.is_list:
        return _single_value(flag, text, problems)
    values = [_single_value(flag, item, problems) for item in text]
    return None if any(value is None for value in values) else values


def _single_value(flag: Flag, text: str, problems: list[str]) -> Any:
    named = flag.field.metadata.get("named", {})  # words such as auto that are valid values of a number
    if text in named:
        return named[text]
    try:
        if flag.kind is bool:
            value: Any = {"true": True, "false": False, "": True}[text.lower()]
        else:
            value = flag.kind(text)
    except (ValueError, KeyError):
        problems.append(f"{flag.name} {text}: not {KIND_NAMES[flag.kind]}")
        return None
    if flag.kind is float and not math.isfinite(value):
        problems.append(f"{flag.name} {text}: not a finite number")
        return None
    bound = violated_bound(flag.field.metadata, value) if flag.kind in (int, float) else None
    if bound is not None:
        problems.append(f"{flag.name} {value}: must be {bound}")
        return None
    if value in flag.field.metadata.get("not_built", ()):
        problems.append(f"{flag.name} {text}: not supported yet; supported: {', '.join(map(str, flag.choices))}")
        return None
    if flag.choices and value not in flag.choices:
        nearest = difflib.get_close_matches(text, [str(choice) for choice in flag.choices], n=1, cutoff=0.6)
        suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
        problems.append(
            f"{flag.name} {text}: not one of {', '.join(str(choice) for choice in flag.choices)}{suggestion}"
        )
        return None
    return value


def _placeholder(flag: Flag) -> Any:
    """Return a valid value for a required flag that is missing or invalid, so that rules about other flags can run."""
    minimum = flag.field.metadata.get("minimum", 1)
    value = flag.choices[0] if flag.choices else {int: minimum, float: float(minimum), bool: False, str: ""}[flag.kind]
    return [value] if flag.is_list else value


def _hint(flag: Flag) -> str:
    return f": one of {', '.join(str(choice) for choice in flag.choices)}" if flag.choices else ""


def _metavar(flag: Flag) -> str:
    if "metavar" in flag.field.metadata:
        return str(flag.field.metadata["metavar"])
    if flag.positional:
        return flag.name.upper()
    if flag.choices:
        return "{" + ",".join(str(choice) for choice in flag.choices) + "}"
    return {int: "N", float: "X", bool: "{true,false}", str: "TEXT"}[flag.kind]


def _help_text(flag: Flag, text: str) -> str:
    default = flag.field.default
    default = {value: name for name, value in flag.field.metadata.get("named", {}).items()}.get(default, default)
    if flag.required:
        text += " (required)"
    elif flag.switch is None and default not in (dataclasses.MISSING, None, ""):
        text += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
    return text.strip().replace("%", "%%")  # argparse formats help texts with the % operator


@functools.cache
def field_docstrings(group: type) -> dict[str, str]:
    """Return field → help text: the string literal directly below the field in the source of the class.

    Fields of base classes are included. Python does not keep these strings at run time, so the source is parsed.

    Args:
        group: the dataclass.
    """
    texts: dict[str, str] = {}
    # Base classes come first, so that a derived class can replace a help text.
    for owner in reversed(group.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except OSError:  # installed without source files: the flags have no help text
            continue
        definition = ast.parse(source).body[0]
        assert isinstance(definition, ast.ClassDef)
        for above, below in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(above, ast.AnnAssign)
                and isinstance(above.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                texts[above.target.id] = " ".join(below.value.value.split())
    return texts
