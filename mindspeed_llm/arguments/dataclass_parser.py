"""From dataclasses to command-line flags and back: one class is one group of `--help`, one field is one flag.

    @dataclass
    class PackArguments:
        '''Packing.'''

        seq_length: int
        '''Slots of a pack.'''
        neat_pack: bool = False
        '''Number the samples of a pack, so that each attends to itself alone.'''

gives `--seq-length N` (required, as the field has no default) and the switch `--neat-pack`.

| type | flag |
|---|---|
| `bool = False` | switch: `--flag` |
| `bool = True`, `bool | None` | `--flag {true,false}`; with metadata `negated="--no-flag"` that switch instead |
| `int`, `float`, `str`, any of them `| None` | `--flag VALUE` |
| `Literal["a", "b"]`, or metadata `choices` | `--flag {a,b}` |
| `list[str]`, `list[int]`, `list[float]` | `--flag VALUE [VALUE ...]`; `extend=True`: a flag given twice adds |

Metadata: `choices`, `metavar`, `flags` (other spellings), `negated`, `extend`, `positional` (a value without a flag),
`not_built` (values refused as known but not built yet), and the bounds of a number (bounds.py). Other keys are for the
rules of the program.
argparse does the reading; what is added here is that all problems of a command line come out together.
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
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from mindspeed_llm.arguments.bounds import violated_bound
from mindspeed_llm.errors import ConfigError

# What argparse itself takes for a negative number rather than a flag.
NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
# Meant as a value, though argparse takes it for a flag: -1,2,3 or -1e-4, and -inf, which is refused as a value.
BEGINS_AS_NUMBER = re.compile(r"-(\.?\d|(inf|infinity|nan)$)", re.IGNORECASE)
KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag as a field declares it.

    Attributes:
        names: its spellings, the usual one first; for a positional value its name in messages.
        kind: type of one value.
        is_list: takes several values.
        switch: value that giving the flag sets, None if the flag takes a value.
    """

    field: dataclasses.Field[Any]
    names: tuple[str, ...]
    kind: type
    is_list: bool
    choices: tuple[Any, ...]
    switch: bool | None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def required(self) -> bool:
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING

    @property
    def positional(self) -> bool:
        return bool(self.field.metadata.get("positional"))


@dataclasses.dataclass(frozen=True)
class ParsedGroups:
    """Groups as far as they could be read.

    Attributes:
        groups: one instance for each class; where the command line is at fault a default stands in.
        problems: one line for each fault.
        doubtful: flags whose value is a stand-in; what is said about them beyond `problems` means nothing.
        given: flags that the command line names.
    """

    groups: list[Any]
    problems: list[str]
    doubtful: frozenset[str]
    given: frozenset[str]


def parse_groups(argv: Sequence[str], groups: Sequence[type], program: str, description: str) -> list[Any]:
    """Read a command line (without the program's name) into one instance of each dataclass of `groups`.

    `--help` prints the help and exits with status 0.

    Raises:
        ConfigError: unknown flags, bad values and missing flags, all of them together.
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
) -> ParsedGroups:
    """Read a command line as far as it goes, for a caller that has more to say before it raises.

    Args:
        refusal: gives, for a flag that no group has, why it is refused, or None if it is simply unknown.
    """
    flags = {group: declared_flags(group) for group in groups}
    if any(word in ("-h", "--help") for word in argv):
        _parser(flags, program, description, with_help=True).print_help()
        sys.exit(0)

    every = [flag for group in groups for flag in flags[group]]
    known = {name: flag for flag in every for name in flag.names}
    assert len(known) == sum(len(flag.names) for flag in every), "two fields with one flag"
    problems: list[str] = []
    doubtful: set[str] = set()
    words = _known_words(argv, known, refusal, problems, doubtful)
    namespace, strays = _parser(flags, program, description).parse_known_args(words)
    problems += [f"'{stray}' belongs to no flag; remove it, or quote the value that it is part of" for stray in strays]

    instances = []
    for group in groups:
        values: dict[str, Any] = {}
        for flag in flags[group]:
            text = getattr(namespace, flag.field.name, None)
            if text is None and not flag.required:
                continue
            if text is None:
                if flag.name not in doubtful:  # otherwise a misspelling of it is reported already
                    problems.append(f"{flag.name} is required{_hint(flag)}")
                value = None
            else:
                value = _value(flag, text, problems)
            if value is None:
                doubtful.add(flag.name)
                value = _stand_in(flag) if flag.required else None
            if value is not None:
                values[flag.field.name] = value
        instances.append(group(**values))
    given = frozenset(flag.name for flag in every if hasattr(namespace, flag.field.name))
    return ParsedGroups(instances, problems, frozenset(doubtful), given)


@functools.cache
def declared_flags(group: Any) -> tuple[Flag, ...]:
    """The flags that a dataclass declares, in the order of its fields."""
    hints = typing.get_type_hints(group)
    return tuple(_flag(field, hints[field.name]) for field in dataclasses.fields(group) if field.init)


def _flag(field: dataclasses.Field[Any], hint: Any) -> Flag:
    metadata = field.metadata
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        assert len(members) == 1, f"{field.name}: only 'X | None' has a command-line form"
        hint, optional = members[0], True
    is_list = typing.get_origin(hint) is list
    if is_list:
        (hint,) = typing.get_args(hint)
    choices = tuple(metadata.get("choices", ()))
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        hint = type(choices[0])
    assert hint in KIND_NAMES, f"{field.name}: {hint} has no command-line form"

    name = field.name.replace("_", "-")
    names = (name,) if metadata.get("positional") else (f"--{name}", *metadata.get("flags", ()))
    switch = None
    if hint is bool and not optional and not is_list:
        if field.default is False:
            switch = True
        elif "negated" in metadata:
            names, switch = (metadata["negated"], *metadata.get("flags", ())), False
    return Flag(field, names, hint, is_list, choices, switch)


def _parser(
    flags: dict[type, tuple[Flag, ...]], program: str, description: str, with_help: bool = False
) -> argparse.ArgumentParser:
    """An argparse parser that keeps every value as text and leaves out what is not given; it finds no fault itself."""
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
    return parser


def _options(flag: Flag, with_help: bool) -> dict[str, Any]:
    """How argparse is to read a flag: for the help as it is meant, otherwise so that a missing value passes.

    argparse would stop at the first missing value; `_value` reports it with all the other faults.
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


def _known_words(
    argv: Sequence[str],
    known: dict[str, Flag],
    refusal: Callable[[str], str | None],
    problems: list[str],
    doubtful: set[str],
) -> list[str]:
    """The words of `argv` without unknown flags and their values, and without values given to switches."""
    words: list[str] = []
    skipping = False
    for word in argv:
        if not word.startswith("-") or word == "-" or " " in word or NEGATIVE_NUMBER.fullmatch(word):
            if not skipping:
                words.append(word)
            continue
        before = known.get(words[-1]) if words and not skipping else None
        if BEGINS_AS_NUMBER.match(word) and before is not None and before.switch is None and not before.is_list:
            words[-1] += f"={word}"
            continue
        name, equals, _ = word.partition("=")
        flag = known.get(name)
        skipping = flag is None
        if flag is None:
            problems.append(refusal(name) or _unknown(name, known, doubtful))
        elif flag.switch is not None and equals:
            problems.append(f"{name} takes no value; write {name} alone, or leave it out")
            doubtful.add(flag.name)
        else:
            words.append(word)
    return words


def _unknown(name: str, known: dict[str, Flag], doubtful: set[str]) -> str:
    spelled = "--" + name.lstrip("-").replace("_", "-")
    nearest = difflib.get_close_matches(spelled, known, n=1, cutoff=0.6)
    if not nearest:
        return f"{name} is not a flag of this program; --help lists them"
    doubtful.add(known[nearest[0]].name)
    return f"{name} is not a flag of this program; did you mean {nearest[0]}?"


def _value(flag: Flag, text: Any, problems: list[str]) -> Any:
    """The value that `text` stands for, or None after saying what is wrong with it."""
    if flag.switch is not None:
        return text
    if text in ("", []) and not (flag.kind is bool and not flag.is_list):
        problems.append(f"{flag.name} needs a value{_hint(flag)}")
        return None
    if not flag.is_list:
        return _one_value(flag, text, problems)
    values = [_one_value(flag, one, problems) for one in text]
    return None if any(value is None for value in values) else values


def _one_value(flag: Flag, text: str, problems: list[str]) -> Any:
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
        problems.append(f"{flag.name} {text}: not built yet; there is {', '.join(map(str, flag.choices))}")
        return None
    if flag.choices and value not in flag.choices:
        near = difflib.get_close_matches(text, [str(choice) for choice in flag.choices], n=1, cutoff=0.6)
        meant = f"; did you mean {near[0]}?" if near else ""
        problems.append(f"{flag.name} {text}: not one of {', '.join(str(choice) for choice in flag.choices)}{meant}")
        return None
    return value


def _stand_in(flag: Flag) -> Any:
    """A harmless value for a required flag that could not be read."""
    least = flag.field.metadata.get("minimum", 1)
    one = flag.choices[0] if flag.choices else {int: least, float: float(least), bool: False, str: ""}[flag.kind]
    return [one] if flag.is_list else one


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
    if flag.required:
        text += " (required)"
    elif flag.switch is None and default not in (dataclasses.MISSING, None, ""):
        text += f" (default: {str(default).lower() if isinstance(default, bool) else default})"
    return text.strip().replace("%", "%%")


@functools.cache
def field_docstrings(group: type) -> dict[str, str]:
    """Field → the string literal right under it in the source of the class (and of the classes that it extends)."""
    texts: dict[str, str] = {}
    for owner in reversed(group.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(owner))
        except OSError:  # no source beside the bytecode: flags without words
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
