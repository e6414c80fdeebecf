"""Represent rules between flags as data: the flags involved, the condition and the error message.

    Rule(
        ("--num-layers", "--pipeline-model-parallel-size"),
        lambda args: args.model.num_layers % args.parallel.pipeline_model_parallel_size,
        "{--num-layers} cannot be divided by {--pipeline-model-parallel-size}",
    )

    --num-layers 3 cannot be divided by --pipeline-model-parallel-size 2

In a message, {--flag} is replaced by the flag and its value. Bounds of a single flag are not rules: its field declares
them (bounds.py), and the parser enforces them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mindspeed_llm.arguments.dataclass_parser import declared_flags

Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class Rule(Generic[Arguments]):
    """One rule between flags.

    Attributes:
        flags: every flag whose value `is_broken` depends on. A test checks that none is missing.
        is_broken: predicate of the arguments; a true value means that they violate the rule.
        message: one line that states the problem and how to fix it: a template, or a function of the arguments if it
            contains derived values.
    """

    flags: tuple[str, ...]
    is_broken: Callable[[Arguments], object]
    message: str | Callable[[Arguments], str]

    def involves(self, flags: Collection[str]) -> bool:
        """Return whether the rule depends on any of `flags`."""
        return any(flag in flags for flag in self.flags)


def violated_rules(
    rules: Iterable[Rule[Arguments]], arguments: Arguments, groups: Iterable[Any], faulty: Collection[str] = ()
) -> list[str]:
    """Return the messages of the rules that the arguments violate, in the order of the rules.

    Args:
        rules: rules of a program.
        arguments: argument of the predicates.
        groups: instances of the program's argument groups, for the values in messages.
        faulty: flags whose own value is invalid. Rules that involve them are skipped, so that one mistake is reported
            once.
    """
    broken = [rule for rule in rules if not rule.involves(faulty) and rule.is_broken(arguments)]
    if not broken:
        return []
    shown = {
        flag.name: _shown(flag.name, getattr(group, flag.field.name))
        for group in groups
        for flag in declared_flags(group.__class__)
    }
    return [
        rule.message.format_map(shown) if isinstance(rule.message, str) else rule.message(arguments) for rule in broken
    ]


def _shown(flag: str, value: object) -> str:
    """Format a flag and its value for a message."""
    if isinstance(value, bool):
        return flag
    if isinstance(value, list):
        return f"{flag} {' '.join(map(str, value))}"
    return f"{flag} {value:g}" if isinstance(value, float) else f"{flag} {value}"


def nearest_multiples(value: int, unit: int, minimum: int = 1) -> str:
    """Return the multiples of a number below and above a value, for a message: '16 or 32'.

    Args:
        value: the value that is no multiple.
        unit: the number.
        minimum: smallest multiple that can be used.
    """
    below, above = value // unit * unit, -(-max(value + 1, minimum) // unit) * unit
    return f"{below} or {above}" if below >= max(minimum, 1) else str(above)
