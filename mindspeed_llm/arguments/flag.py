"""Flag: the description of one command-line flag, read from a field of a dataclass (see dataclass_parser.py)."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from typing import Any, Literal

# argparse treats these arguments as negative numbers, not as flags.
NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")
KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag, as declared by a dataclass field.

    Attributes:
        field: the dataclass field.
        names: spellings of the flag, the preferred one first; for a positional value its name in messages.
        kind: type of one value.
        is_list: whether the flag takes several values.
        choices: allowed values; empty if any value is allowed.
        switch: value that a switch sets; None if the flag takes a value.
    """

    field: dataclasses.Field[Any]
    names: tuple[str, ...]
    kind: type
    is_list: bool
    choices: tuple[Any, ...]
    switch: bool | None

    @property
    def name(self) -> str:
        """Preferred spelling of the flag."""
        return self.names[0]

    @property
    def required(self) -> bool:
        """Whether the field has no default."""
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING

    @property
    def positional(self) -> bool:
        """Whether the value is given without a flag."""
        return bool(self.field.metadata.get("positional"))


@functools.cache
def declared_flags(group: Any) -> tuple[Flag, ...]:
    """Return the flags that a dataclass declares, in the order of its fields.

    Args:
        group: the dataclass.
    """
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

    name = metadata.get("name", field.name.replace("_", "-"))
    names = (name,) if metadata.get("positional") else (f"--{name}", *metadata.get("flags", ()))
    switch = None
    if hint is bool and not optional and not is_list:
        if field.default is False:
            switch = True
        elif "negated" in metadata:
            names, switch = (metadata["negated"], *metadata.get("flags", ())), False
    return Flag(field, names, hint, is_list, choices, switch)
