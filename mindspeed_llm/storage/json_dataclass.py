"""Decode parsed JSON into dataclasses, with a check of every field, because the file may be untrusted."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

INTEGERS = 1 << 63  # exclusive limit: numpy's and torch's integers have 64 bits with a sign

T = TypeVar("T")


def decode_dataclass(value: Any, wanted: type[T] | Any, where: str) -> Any:
    """Convert a value that was parsed from JSON to a type, and check it.

    Args:
        value: from `json.loads`.
        wanted: a scalar type, Any, Literal, X | None, list[X], dict[str, X], or a dataclass of these. Keys that a
            dataclass does not have are ignored.
        where: path of the value for messages, such as `counts.skipped`; empty for the complete file.

    Returns:
        An object of type `wanted`.

    Raises:
        ValueError: The value does not have this type. The message names the field, as in `counts.skipped must be a
            dictionary`.
    """
    if wanted is Any:
        return value
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (wanted,) = [option for option in inner if option is not type(None)]
        return decode_dataclass(value, wanted, where)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, inner))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        return [decode_dataclass(item, inner[0], where) for item in value]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a dictionary")
        return {key: decode_dataclass(item, inner[1], f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(wanted):
        return _decoded_dataclass(value, wanted, where)
    if isinstance(value, int) and not -INTEGERS <= value < INTEGERS:
        raise ValueError(f"{where} has more than 64 bits")
    # An integer is a valid float in JSON. A bool is an int in Python, but not in these files.
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
    decoded: dict[str, Any] = {}
    for field in fields(wanted):
        name = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            decoded[field.name] = decode_dataclass(value[field.name], hints[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    return wanted(**decoded)
