"""Parse tools and function calls of a row, and write them in the tool format of a chat template.

tools.json contains the formats. Each consists of `text`, which follows the system text and contains {{tools}} and
{{names}}; `tool`, the text of one tool in it; `call`, the text of one call; and `separator`, the text between the calls
of one answer, which is null if the model can make only one call per answer.

    default   LLaMA-Factory 0.8.2's and MindSpeed-LLM's; does not write nested parameters
    qwen      Qwen 2.5's and 3's published chat templates
    glm4      GLM-4's published chat template

Nulls: in a parquet or Arrow file all structs of a column have the union of their keys, with null where a row lacks a
key. A null in the data itself looks the same. Therefore a key of an object whose value is null counts as absent, at
every depth and in every file format. Null entries of a list are kept. Tools, parameters and arguments that are JSON
text are not structs and keep their nulls.

    parquet      {"city": "Oslo", "unit": null, "ids": [1, null]}
    JSON lines   {"city": "Oslo", "ids": [1, null]}
    written      {"city": "Oslo", "ids": [1, null]}                    for both
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
    """One entry of tools.json.

    Attributes:
        name: value of `--tool-format`.
        text: text after the system text, with {{tools}} and {{names}}.
        tool: text of one tool.
        call: text of one call, with {{name}} and {{arguments}}.
        separator: text between the calls of one answer; None if an answer can contain only one call.
    """

    name: str
    text: str
    tool: str
    call: str
    separator: str | None

    @property
    def writes_empty_system(self) -> bool:
        """Whether an explicit "[]" (no tools) makes the template write the markers of an empty system text."""
        # Qwen's published template writes nothing for an empty list.
        return self.name != "qwen"

    def describe(self, tools: Sequence[Mapping[str, Any]], system: str) -> str:
        """Write the text that follows the system text: the tools, and how to call them.

        Args:
            tools: functions as `parse_tools` returns them.
            system: the system text. If it is empty, the result does not begin with line breaks.

        Returns:
            The text; empty without tools.
        """
        if not tools:
            return ""
        each = [_fill_fields(self.tool, _tool_fields(tool, self.tool)) for tool in tools]
        text = _fill_fields(self.text, {"tools": "".join(each), "names": ", ".join(tool["name"] for tool in tools)})
        return text if system else text.lstrip("\n")

    @property
    def breaks_before_calls(self) -> bool:
        """Whether a line break separates text and calls even if the text already ends with a line break."""
        # As in Qwen 2.5's published template.
        return self.name == "qwen"

    def write_calls(self, calls: Sequence[FunctionCall], pattern: str | None = None) -> str:
        """Write the calls of one answer.

        Args:
            calls: the calls, in their order.
            pattern: text of one call if the template has its own; None for that of the format.

        Raises:
            InvalidRowError: several calls in a format that allows only one per answer.
        """
        if len(calls) > 1 and self.separator is None:
            raise InvalidRowError(SEVERAL_CALLS)
        return (self.separator or "").join(_fill_fields(pattern or self.call, call._asdict()) for call in calls)


@functools.cache
def tool_formats() -> dict[str, ToolFormat]:
    """Return the tool formats by name."""
    entries = json.loads(Path(__file__).with_name("tools.json").read_text(encoding="utf-8"))
    return {name: ToolFormat(name, **entry) for name, entry in entries.items()}


def _fill_fields(pattern: str, values: Mapping[str, str]) -> str:
    """Return `pattern` with every {{field}} replaced by its value; unknown fields stay."""
    # All in one pass, so that text in a value that looks like a field is not replaced.
    return FIELD.sub(lambda match: values.get(match[1], match[0]), pattern)


def _tool_fields(tool: Mapping[str, Any], pattern: str) -> dict[str, str]:
    """Return the values of the fields of one tool that `pattern` contains."""
    fields = {"name": tool["name"], "description": _text_of(tool.get("description"))}
    if "{{json of function}}" in pattern:
        fields["json of function"] = json.dumps({"type": "function", "function": tool}, ensure_ascii=False)
    if "{{indented json}}" in pattern:
        fields["indented json"] = json.dumps(tool, indent=4, ensure_ascii=False)
    if "{{parameters}}" in pattern:
        fields["parameters"] = _parameters(tool)
    return fields


def _text_of(value: Any) -> str:
    """Return `value` as text; "" for a null, which JSON text may contain, instead of "None"."""
    return "" if value is None else str(value)


def _parameters(tool: Mapping[str, Any]) -> str:
    """Return one line per parameter: name, type, whether it is required, description, allowed values."""
    schema = tool.get("parameters") or {}
    lines = []
    for name, parameter in (schema.get("properties") or {}).items():
        required = ", required" if name in (schema.get("required") or ()) else ""
        allowed = parameter.get("enum")
        enum = f", should be one of [{', '.join(map(str, allowed))}]" if allowed else ""
        items = parameter.get("items")
        each = f", where each item should be {_text_of(items.get('type'))}" if items else ""
        kind, description = _text_of(parameter.get("type")), _text_of(parameter.get("description"))
        lines.append(f"  - {name} ({kind}{required}): {description}{enum}{each}\n")
    return "".join(lines)


def parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Parse the tools of a row.

    Args:
        value: a list of functions or its JSON text, each function bare or as OpenAI's
            {"type": "function", "function": {...}}; empty or None for no tools.

    Returns:
        The functions, each {"name", "description", "parameters", ...}.

    Raises:
        InvalidRowError: the value is anything else.
    """
    if isinstance(value, str):
        if not value.strip():
            return ()
        # Without `_without_nulls`: a null in JSON text is a value of the data.
        value = _parse_json(value, BAD_TOOLS)
    else:
        value = _without_nulls(value, BAD_TOOLS)
    if not value:
        return ()
    if not isinstance(value, list):
        raise InvalidRowError(BAD_TOOLS)
    tools = [_parse_tool(tool) for tool in value]
    _check_json(tools, BAD_TOOLS)
    return tuple(tools)


def _parse_tool(tool: Any) -> dict[str, Any]:
    """Return one function without OpenAI's wrapping; its parameters may be JSON text."""
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        tool = tool["function"]
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise InvalidRowError(BAD_TOOLS)
    if isinstance(tool.get("parameters"), str):
        tool = {**tool, "parameters": _parse_json(tool["parameters"] or "{}", BAD_TOOLS)}
    tool = _without_null_parameters(tool)
    if not _has_valid_parameters(tool):
        raise InvalidRowError(BAD_TOOLS)
    return tool


def _without_nulls(value: Any, reason: str) -> Any:
    """Return `value` without the keys whose value is null, at every depth (see the docstring of the module).

    Raises:
        InvalidRowError: with `reason`, if the value is nested too deeply.
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
    """Return `tool` without parameters that are null."""
    # JSON text keeps its nulls, but text made from a columnar row lists the parameters of every tool in each tool.
    schema = tool.get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if schema is None or not isinstance(properties, dict) or None not in properties.values():
        return tool
    kept = {name: parameter for name, parameter in properties.items() if parameter is not None}
    return {**tool, "parameters": {**schema, "properties": kept}}


def _has_valid_parameters(tool: Mapping[str, Any]) -> bool:
    """Return whether `_parameters` can write the parameters of `tool`."""
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


def parse_calls(value: Any, with_ids: bool = False) -> tuple[FunctionCall, ...]:
    """Parse function calls.

    A call is {"name", "arguments"}, bare or as OpenAI's {"type": "function", "function": {...}}. Arguments are an
    object, or JSON text of one. An object without arguments has the arguments {}.

    Args:
        value: a call or a list of calls, as objects or as JSON text.
        with_ids: whether to read the ids of the calls.

    Returns:
        The calls, at least one.

    Raises:
        InvalidRowError: the value is anything else.
    """
    from_text = isinstance(value, str)
    value = _parse_json(value, BAD_CALL) if from_text else _without_nulls(value, BAD_CALL)
    calls = [_parse_call(call, from_text, with_ids) for call in (value if isinstance(value, list) else [value])]
    if not calls:
        raise InvalidRowError(BAD_CALL)
    return tuple(calls)


def _parse_call(call: Any, from_text: bool, with_ids: bool) -> FunctionCall:
    """Parse one call; a call in JSON text must have arguments."""
    number = call.get("id") if with_ids and isinstance(call, dict) else None
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or (from_text and "arguments" not in call):
        raise InvalidRowError(BAD_CALL)
    arguments = _parse_arguments(call.get("arguments", {}), plain=from_text)
    _check_json([call["name"], arguments, number], BAD_CALL)
    text = json.dumps(arguments, ensure_ascii=False)
    return FunctionCall(call["name"], text, number if isinstance(number, str) else "")


def _parse_arguments(value: Any, plain: bool) -> Any:
    """Parse the arguments of a call: text is JSON, which may be quoted several times.

    Args:
        value: the arguments as an object or as text.
        plain: whether text that does not begin like a JSON object, list or string is kept, as in MindSpeed-LLM.

    Raises:
        InvalidRowError: the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return {}
    if plain and value.lstrip()[0] not in '{["':
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        if plain and value.lstrip()[0] == '"':
            return value
        raise InvalidRowError(BAD_CALL) from None
    # The JSON may be text again, since some data quote arguments twice. Inside quotes plain text is a valid value.
    return _parse_arguments(parsed, plain=True)


def _parse_json(text: str, reason: str) -> Any:
    """Parse JSON text; raise InvalidRowError with `reason` if it is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRowError(reason) from None


def _check_json(value: Any, reason: str) -> None:
    """Raise InvalidRowError for values that JSON cannot express: NaN, infinities, dates, half a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):  # UnicodeEncodeError is a ValueError
        raise InvalidRowError(reason) from None
