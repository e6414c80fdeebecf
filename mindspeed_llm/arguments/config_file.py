"""Read the flags of a program from a YAML file: `--config run.yaml`, and write all flags with hyphens.

    # run.yaml
    data-path: [0.3, ./a, 0.7, ./b]
    lr: 1e-5
    neat_pack: true         # a switch; false leaves it out

The keys are the names of the flags without --, with hyphens or underscores. A flag of the command line replaces the
value of the file. Relative paths are relative to the current directory, as on the command line.

The file is composed into YAML nodes and never constructed: each node has its line, which messages name, and its text
as it was written, so that YAML turns no text into a date, an octal number or a boolean.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindspeed_llm.arguments.flag import KIND_NAMES, NEGATIVE_NUMBER, Flag
from mindspeed_llm.arguments.foreign_flags import flags_in
from mindspeed_llm.storage.safe_open import read_file_text

if TYPE_CHECKING:
    from yaml.nodes import Node

CONFIG = "--config"
TAG = "tag:yaml.org,2002:"
# What YAML 1.1 reads as a boolean.
BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on"), "true"),
    **dict.fromkeys(("false", "no", "off"), "false"),
}
SCALARS = ("str", "int", "float", "bool", "null", "timestamp")


@dataclass
class ExpandedCommand:
    """A command line in which the values of the file have replaced --config.

    Attributes:
        arguments: the arguments of the command line, then those of the file that it does not give.
        origins: flag of the file → file and line, such as 'run.yaml:3'.
        positional: name of a value without a flag → its text or texts in the file.
        problems: one line per problem of the file.
        invalid_flags: flags whose value in the file is invalid.
    """

    arguments: list[str]
    origins: dict[str, str] = field(default_factory=dict)
    positional: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    invalid_flags: set[str] = field(default_factory=set)


def expand_config(
    argv: Sequence[str], flags: Iterable[Flag], refusal: Callable[[str], str | None] = lambda name: None
) -> ExpandedCommand:
    """Replace --config in a command line by the flags of its file, and underscores in the names of flags by hyphens.

    Args:
        argv: command-line arguments without the program's name.
        flags: flags of the program.
        refusal: returns the reason why an undeclared flag is refused; None if the flag is simply unknown.
    """
    flags = tuple(flags)
    rest, files = _divide(argv)
    command = ExpandedCommand(with_declared_spelling(rest, flags))
    if len(files) > 1:
        command.problems.append(f"{CONFIG} is given {len(files)} times; give one file")
    elif files == [""]:
        command.problems.append(f"{CONFIG} needs the name of a YAML file")
    elif files:
        entries = list(read_yaml_mapping(files[0], command.problems))
        if command.problems and not entries:
            # What the file would have given is unknown: nothing is reported as missing.
            command.invalid_flags.update(flag.name for flag in flags)
        add_entries(command, entries, flags, refusal)
    return command


def add_entries(
    command: ExpandedCommand,
    entries: Iterable[tuple[str, Node, str]],
    flags: Iterable[Flag],
    refusal: Callable[[str], str | None] = lambda name: None,
) -> None:
    """Add the entries of a file to a command line, unless the command line gives their flags.

    Args:
        command: the command line, which is changed.
        entries: (key, node of the value, file and line), as `mapping_entries` returns them.
        flags: flags of the program.
        refusal: returns the reason why an undeclared flag is refused; None if the flag is simply unknown.
    """
    known = {_spelled(name): flag for flag in flags for name in flag.names}
    given = {
        known[_spelled(name)].name for word in command.arguments if _spelled(name := word.partition("=")[0]) in known
    }
    for key, node, where in entries:
        _add(command, key, node, where, known, given, refusal)


def _divide(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command line into the other arguments and the values of --config."""
    rest: list[str] = []
    files: list[str] = []
    words = iter(argv)
    for word in words:
        if word == CONFIG:
            files.append(next(words, ""))
        elif word.startswith(f"{CONFIG}="):
            files.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, files


def with_declared_spelling(argv: Sequence[str], flags: Iterable[Flag]) -> list[str]:
    """Return a command line whose flags are spelled as they are declared: --seq_length becomes --seq-length.

    Unknown flags stay as they are, so that a message shows what was typed.

    Args:
        argv: command-line arguments without the program's name.
        flags: flags of the program.
    """
    declared = {_spelled(name): name for flag in flags if not flag.positional for name in flag.names}
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        spelled = declared.get(_spelled(name), name) if name.startswith("--") else name
        words.append(spelled + equals + value)
    return words


def _spelled(name: str) -> str:
    """Return the name of a flag or a key without -- and with hyphens: --seq_length → seq-length."""
    return name.lstrip("-").replace("_", "-")


def read_yaml_mapping(path: str | Path, problems: list[str], flag: str = f"{CONFIG} ") -> list[tuple[str, Node, str]]:
    """Return (key, node of the value, file and line) for each entry of a YAML file that is a mapping.

    Args:
        path: the file.
        problems: a line is added for each problem: the file cannot be read, is no mapping, or has a key twice.
        flag: what names the file, for messages.
    """
    import yaml  # late: most commands have no file

    try:
        root = yaml.compose(read_file_text(Path(path)), Loader=yaml.SafeLoader)
    except OSError as error:
        problems.append(f"{flag}{path}: cannot be read ({error.strerror or error})")
    except UnicodeDecodeError:
        problems.append(f"{flag}{path}: not UTF-8 text; give a YAML file")
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        problems.append(f"{path}{line}: not YAML ({error.problem})")
    except (yaml.YAMLError, RecursionError) as error:
        problems.append(f"{path}: not YAML ({' '.join(str(error).split())})")
    else:
        if root is None:
            problems.append(f"{path}: the file is empty; write 'name: value' lines")
        else:
            return mapping_entries(root, str(path), problems)
    return []


def mapping_entries(node: Node, path: str, problems: list[str]) -> list[tuple[str, Node, str]]:
    """Return (key, node of the value, file and line) for each entry of a mapping.

    Args:
        node: the mapping.
        path: the file, for messages.
        problems: a line is added if the node is no mapping, and for each key that is no text or occurs twice.
    """
    import yaml

    if not isinstance(node, yaml.MappingNode):
        problems.append(f"{path}:{node.start_mark.line + 1}: not a mapping; write 'name: value' lines")
        return []
    entries = []
    lines: dict[str, int] = {}
    for key, value in node.value:
        number = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{path}:{number}: a key must be a name")
        elif _spelled(key.value) in lines:
            problems.append(f"{path}:{number}: {key.value} is also in line {lines[_spelled(key.value)]}; keep one")
        else:
            lines[_spelled(key.value)] = number
            entries.append((key.value, value, f"{path}:{number}"))
    return entries


def _add(
    command: ExpandedCommand,
    key: str,
    node: Node,
    where: str,
    known: Mapping[str, Flag],
    given: set[str],
    refusal: Callable[[str], str | None],
) -> None:
    """Add one entry of the file to a command line, unless the command line gives the flag."""
    flag = known.get(_spelled(key))
    if flag is None:
        reason = f"{key}: a file cannot name another file" if _spelled(key) == _spelled(CONFIG) else None
        if reason is None and (reason := refusal(f"--{_spelled(key)}")) is not None:
            names = {name: flag.name for flag in known.values() for name in flag.names}
            # What the message names was probably meant: it must not be reported as missing as well.
            command.invalid_flags.update(names[name] for name in flags_in(reason, names))
        command.problems.append(f"{where}: {reason or _unknown(key, known, command.invalid_flags)}")
        return
    if flag.name in command.origins:
        command.problems.append(f"{where}: {key} is {flag.name}, which is also at {command.origins[flag.name]}")
        return
    command.origins[flag.name] = where
    texts, problem = flag_texts(flag, node)
    if problem is not None:
        command.problems.append(f"{where}: {key} {problem}")
        command.invalid_flags.add(flag.name)
    elif flag.name in given or (flag.switch is not None and not texts):
        del command.origins[flag.name]
    elif flag.positional:
        command.positional[flag.name] = texts if flag.is_list else texts[0]
    elif flag.switch is not None:
        command.arguments += texts
    elif flag.is_list:
        command.arguments += [flag.name, *texts]
    else:
        command.arguments.append(f"{flag.name}={texts[0]}")


def _unknown(key: str, known: Mapping[str, Flag], invalid_flags: set[str]) -> str:
    nearest = difflib.get_close_matches(_spelled(key), known, n=1, cutoff=0.6)
    if not nearest:
        return f"{key} is not a flag of this program; --help lists them"
    # The nearest flag was probably meant: it must not be reported as missing as well.
    invalid_flags.add(known[nearest[0]].name)
    return f"{key} is not a flag of this program; did you mean {nearest[0]}?"


def flag_texts(flag: Flag, node: Node) -> tuple[list[str], str | None]:
    """Return the value of a YAML node as it would be written on the command line, and what is wrong with it.

    Args:
        flag: the flag that the value is for.
        node: the value.

    Returns:
        Texts of the values; for a switch the flag itself, or nothing.
        The end of a message, after the key; None if the value can be used.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        if not flag.is_list:
            joined = ",".join(str(each.value) for each in node.value)
            return [], f"takes one value, not a list; write one, such as {_spelled(flag.name)}: {joined}"
        nodes = node.value
    else:
        nodes = [node]
    texts: list[str] = []
    for each in nodes:
        text, problem = _scalar_text(flag, each)
        if problem is not None:
            return [], problem
        texts.append(text)
    if flag.switch is not None:
        return [flag.name] if texts == ["true"] else [], None
    return texts, None


def _scalar_text(flag: Flag, node: Node) -> tuple[str, str | None]:
    """Return the text of one value, and what is wrong with it."""
    import yaml

    kind = node.tag.removeprefix(TAG)
    if not isinstance(node, yaml.ScalarNode):
        return "", f"takes {KIND_NAMES[flag.kind]}, not a {'mapping' if kind == 'map' else 'list'}"
    if kind not in SCALARS:
        return "", f"has the tag {node.tag}; remove it"
    if kind == "null":
        return "", "has no value; give one, or remove the line"
    text = str(node.value)
    if flag.kind is bool:
        value = BOOLEANS.get(text.lower())
        return value or "", None if kind == "bool" and value else "takes true or false"
    if kind == "bool" and text not in flag.choices:
        if flag.kind is str:
            return "", f'takes text; write "{text}" in quotes'
        return "", f"takes {KIND_NAMES[flag.kind]}, not {text}"
    if flag.is_list and text.startswith("-") and not NEGATIVE_NUMBER.fullmatch(text):
        return "", f"has the value {text}, which looks like a flag"
    return text, None
