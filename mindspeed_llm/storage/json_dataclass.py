"""Parsed JSON → dataclasses, checked field by field: the file may come from anywhere."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

INTEGERS = 1 << 63  # what arrays can hold

T = TypeVar("T")


def decode_dataclass(value: Any, wanted: type[T] | Any, where: str) -> Any:
    """`value`, parsed from JSON, as type `wanted`.

    Types: a scalar, Any, Literal, X | None, list[X], dict[str, X], or a dataclass of these. Keys that a dataclass
    does not have are left out.

    Raises:
        ValueError: naming the field, as in `counts.skipped: must be a dictionary`.
    """
    if wanted is Any:
        return value
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (wanted,) = [one for one in inner if one is not type(None)]
        return decode_dataclass(value, wanted, where)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, inner))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return [decode_dataclass(one, inner[0], where) for one in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a dictionary")
        return {key: decode_dataclass(one, inner[1], f"{where}.{key}") for key, one in value.items()}
    if is_dataclass(wanted):
        return _decoded_dataclass(value, wanted, where)
    if isinstance(value, int) and not -INTEGERS <= value < INTEGERS:
        raise ValueError(f"{where} has more than 64 bits")
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{where} must be of type float") from None
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(f"{where} must be of type {wanted.__name__}")
    return value


def _decoded_dataclass(value: Any, wanted: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a dictionary")
    hints = typing.get_type_hints(wanted)
    found: dict[str, Any] = {}
    for one in fields(wanted):
        name = f"{where}.{one.name}" if where else one.name
        if one.name in value:
            found[one.name] = decode_dataclass(value[one.name], hints[one.name], name)
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    return wanted(**found)
