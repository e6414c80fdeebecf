"""How functions that the model may call, and its calls of them, are written: tools.json has the formats.

A format is the text that stands after the system text, with {{tools}} and {{names}}; one tool in it; one call; and
what stands between the calls of one answer, null where the model knows only one call at a time.

    default   LLaMA-Factory 0.8.2's and MindSpeed-LLM's; knows no nested parameters
    qwen      Qwen 2.5's and 3's published chat templates
    glm4      GLM-4's published chat template

Nulls. In a parquet or Arrow file all structs of a column have the union of their keys, null where a row has none, and a
null that the data contain looks the same. So a key of an object whose value is null counts as absent, at every depth
and in every format of files, and null entries of a list stay. Tools, parameters and arguments that are JSON text are
no structs, and keep their nulls.

    columnar   {"city": "Oslo", "unit": null, "ids": [1, null]}      lines   {"city": "Oslo", "ids": [1, null]}
    written    {"city": "Oslo", "ids": [1, null]}                    for both
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mindspeed_llm.chat.conversation import FunctionCall, InvalidRowError

FIELD = re.compile(r"\{\{([a-z ]+)\}\}")
BAD_TOOLS = "tools are not a list of functions"
BAD_CALL = "function call is not JSON with name and arguments"
SEVERAL_CALLS = "several function calls in one answer, which the tool format does not have"


class ToolFormat(NamedTuple):
    """One entry of tools.json."""

    name: str
    text: str
    tool: str
    call: str
    separator: str | None

    @property
    def marks_none(self) -> bool:
        """Whether "[]", no tools, brings the markers of a system text: not in Qwen's published template."""
        return self.name != "qwen"

    def describe(self, tools: Sequence[Mapping[str, Any]], system: str) -> str:
        """What stands after `system`: the tools, and how to call them; empty without tools."""
        if not tools:
            return ""
        each = [_filled(self.tool, _tool_fields(tool, self.tool)) for tool in tools]
        text = _filled(self.text, {"tools": "".join(each), "names": ", ".join(tool["name"] for tool in tools)})
        return text if system else text.lstrip("\n")

    @property
    def breaks_before_calls(self) -> bool:
        """Whether a line break stands between text and calls even where the text ends with one: in Qwen 2.5."""
        return self.name == "qwen"

    def write_calls(self, calls: Sequence[FunctionCall], pattern: str | None = None) -> str:
        """The calls of one answer.

        Args:
            pattern: a template's own way to write one call.

        Raises:
            BadRow: more calls than the format can have.
        """
        if len(calls) > 1 and self.separator is None:
            raise InvalidRowError(SEVERAL_CALLS)
        return (self.separator or "").join(_filled(pattern or self.call, call._asdict()) for call in calls)


@functools.cache
def tool_formats() -> dict[str, ToolFormat]:
    """All formats by name."""
    entries = json.loads(Path(__file__).with_name("tools.json").read_text(encoding="utf-8"))
    return {name: ToolFormat(name, **entry) for name, entry in entries.items()}


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    """`pattern` with every {{field}} replaced at once, so that a value may hold what looks like a field."""
    return FIELD.sub(lambda found: values.get(found[1], found[0]), pattern)


def _tool_fields(tool: Mapping[str, Any], pattern: str) -> dict[str, str]:
    fields = {"name": tool["name"], "description": _shown(tool.get("description"))}
    if "{{json of function}}" in pattern:
        fields["json of function"] = json.dumps({"type": "function", "function": tool}, ensure_ascii=False)
    if "{{indented json}}" in pattern:
        fields["indented json"] = json.dumps(tool, indent=4, ensure_ascii=False)
    if "{{parameters}}" in pattern:
        fields["parameters"] = _parameters(tool)
    return fields


def _shown(value: Any) -> str:
    """`value` as text; null, which JSON text may hold, is not "None"."""
    return "" if value is None else str(value)


def _parameters(tool: Mapping[str, Any]) -> str:
    """A line for each parameter: name, type, whether it is required, description, allowed values."""
    schema = tool.get("parameters") or {}
    lines = []
    for name, parameter in (schema.get("properties") or {}).items():
        required = ", required" if name in (schema.get("required") or ()) else ""
        allowed = parameter.get("enum")
        enum = f", should be one of [{', '.join(map(str, allowed))}]" if allowed else ""
        items = parameter.get("items")
        each = f", where each item should be {_shown(items.get('type'))}" if items else ""
        kind, description = _shown(parameter.get("type")), _shown(parameter.get("description"))
        lines.append(f"  - {name} ({kind}{required}): {description}{enum}{each}\n")
    return "".join(lines)


def parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the functions of a row: a list of them or its JSON, each bare or as OpenAI's {"type": "function", ...}.

    Raises:
        BadRow: anything else.
    """
    if isinstance(value, str):
        if not value.strip():
            return ()
        value = _json(value, BAD_TOOLS)
    else:
        value = _without_nulls(value, BAD_TOOLS)
    if not value:
        return ()
    if not isinstance(value, list):
        raise InvalidRowError(BAD_TOOLS)
    found = [_tool(tool) for tool in value]
    _check_json(found, BAD_TOOLS)
    return tuple(found)


def _tool(tool: Any) -> dict[str, Any]:
    """One function, without the wrapping; its parameters may be JSON text."""
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        tool = tool["function"]
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise InvalidRowError(BAD_TOOLS)
    if isinstance(tool.get("parameters"), str):
        tool = {**tool, "parameters": _json(tool["parameters"] or "{}", BAD_TOOLS)}
    tool = _without_null_parameters(tool)
    if not _sound_parameters(tool):
        raise InvalidRowError(BAD_TOOLS)
    return tool


def _without_nulls(value: Any, reason: str) -> Any:
    """`value` without the keys that are null, at every depth (see above).

    Raises:
        BadRow: with `reason`, for a value that is nested too deeply.
    """

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(entry) for key, entry in value.items() if entry is not None}
        return [cleaned(entry) for entry in value] if isinstance(value, list) else value

    try:
        return cleaned(value)
    except RecursionError:
        raise InvalidRowError(reason) from None


def _without_null_parameters(tool: dict[str, Any]) -> dict[str, Any]:
    """`tool` without parameters that are null: JSON text that was made of a columnar row has every tool's in each."""
    schema = tool.get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if schema is None or not isinstance(properties, dict) or None not in properties.values():
        return tool
    kept = {name: parameter for name, parameter in properties.items() if parameter is not None}
    return {**tool, "parameters": {**schema, "properties": kept}}


def _sound_parameters(tool: Mapping[str, Any]) -> bool:
    """Whether `_parameters` can write them."""
    schema = tool.get("parameters")
    if schema is None:
        return True
    if not isinstance(schema, dict) or not isinstance(schema.get("properties") or {}, dict):
        return False
    required = schema.get("required")
    return (required is None or isinstance(required, list)) and all(
        isinstance(parameter, dict)
        and isinstance(parameter.get("enum") or [], list)
        and isinstance(parameter.get("items") or {}, dict)
        for parameter in (schema.get("properties") or {}).values()
    )


def parse_calls(value: Any) -> tuple[FunctionCall, ...]:
    """Return the calls that a value holds: one, or a list of them, as objects or as JSON text of these.

    A call is {"name", "arguments"}, bare or as OpenAI's {"type": "function", "function": {...}}. Arguments are an
    object, or JSON text of one. Of an object without arguments they are {}.

    Raises:
        BadRow: anything else.
    """
    from_text = isinstance(value, str)
    value = _json(value, BAD_CALL) if from_text else _without_nulls(value, BAD_CALL)
    found = [_call(call, from_text) for call in (value if isinstance(value, list) else [value])]
    if not found:
        raise InvalidRowError(BAD_CALL)
    return tuple(found)


def _call(call: Any, from_text: bool) -> FunctionCall:
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or (from_text and "arguments" not in call):
        raise InvalidRowError(BAD_CALL)
    arguments = _arguments(call.get("arguments", {}), plain=from_text)
    _check_json([call["name"], arguments], BAD_CALL)
    return FunctionCall(call["name"], json.dumps(arguments, ensure_ascii=False))


def _arguments(value: Any, plain: bool) -> Any:
    """What arguments mean: text is JSON, however often it is quoted.

    Args:
        plain: text that is neither an object nor a list may also be itself, as in MindSpeed-LLM.

    Raises:
        BadRow: text that is no JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return {}
    if plain and value.lstrip()[0] not in '{["':
        return value
    try:
        meant = json.loads(value)
    except (ValueError, RecursionError):
        if plain and value.lstrip()[0] == '"':
            return value
        raise InvalidRowError(BAD_CALL) from None
    return _arguments(meant, plain=True)


def _json(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRowError(reason) from None


def _check_json(value: Any, reason: str) -> None:
    """Refuse what JSON cannot hold: NaN, infinities, dates, half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):  # UnicodeEncodeError is a ValueError
        raise InvalidRowError(reason) from None
