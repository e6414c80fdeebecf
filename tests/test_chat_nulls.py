"""Nulls of columnar files: the same rows give the same samples from JSON lines, parquet and Arrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from input_files import find_files

from mindspeed_llm.chat import Conversation, FunctionCall, InvalidRowError, create_handler, load_chat_template
from mindspeed_llm.chat.tool_formats import parse_calls, parse_tools
from mindspeed_llm.rawdata import read_rows

TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
}
KEYS = json.dumps({"messages": "messages", "tags": TAGS})


def row(tool: dict[str, Any], call: dict[str, Any], **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "Ask."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "told"},
        {"role": "assistant", "content": "Done.", **more},
    ]
    return {"messages": messages, "tools": [tool]}


TOWN = {"type": "object", "properties": {"town": {"type": "string", "enum": ["Oslo"]}}, "required": ["town"]}
ROWS = [
    row({"name": "rain", "description": "Rain.", "parameters": TOWN}, {"name": "rain", "arguments": {"town": "Oslo"}}),
    row(
        {
            "type": "function",
            "function": {"name": "add", "parameters": {"properties": {"deep": {"items": {"type": "string"}}}}},
        },
        {"type": "function", "function": {"name": "add", "arguments": {"d": {"a": [{"b": 1}, {"c": None}]}}}},
        weight=1,
    ),
    row({"name": "now", "parameters": {"properties": {}}}, {"id": "c1", "name": "now", "arguments": {}}),
]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows.{kind}"
    table = pyarrow.Table.from_pylist(rows)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as out:
            out.write_table(table)
    return path


def conversations(path: Path) -> list[Conversation]:
    handler, problems = create_handler("SharegptStyleInstructionHandler", KEYS)
    assert handler is not None, problems
    return [handler.conversation(one.value) for one in read_rows(find_files([str(path)]))]


def test_nulls_of_columnar_files_are_no_data(tmp_path: Path) -> None:
    lines, parquet, arrow = (conversations(written(tmp_path, kind, ROWS)) for kind in ("jsonl", "parquet", "arrow"))
    assert lines == parquet == arrow
    assert [conversation.turns[0].calls for conversation in arrow] == [
        (FunctionCall("rain", '{"town": "Oslo"}'),),
        (FunctionCall("add", '{"d": {"a": [{"b": 1}, {}]}}'),),
        (FunctionCall("now", "{}"),),
    ]
    assert arrow[0].tools == (ROWS[0]["tools"][0],)
    for name in ("qwen", "qwen3", "glm4"):
        shown = [str(load_chat_template(name).render(conversation)) for conversation in arrow]
        assert shown == [str(load_chat_template(name).render(conversation)) for conversation in lines]
        assert not any(word in text for text in shown for word in ("null", "Description: None", "(None"))


def test_entries_of_lists_and_json_text_keep_their_nulls() -> None:
    call = {"name": "f", "arguments": {"xs": [1, None, {"a": None}], "b": None}}
    assert parse_calls(call) == (FunctionCall("f", '{"xs": [1, null, {}]}'),)
    text = '{"xs": [1, null, {"a": null}], "b": null}'
    assert parse_calls({"name": "f", "arguments": text}) == (FunctionCall("f", text),)
    assert parse_calls(json.dumps(call)) == (FunctionCall("f", text),)
    schema = {"properties": {"a": {"default": None, "enum": [1, None]}}}
    for tools in (json.dumps([{"name": "f", "parameters": schema}]), [{"name": "f", "parameters": json.dumps(schema)}]):
        assert parse_tools(tools) == ({"name": "f", "parameters": schema},)
    assert parse_tools([{"name": "f", "parameters": schema}])[0]["parameters"]["properties"] == {
        "a": {"enum": [1, None]}
    }


def test_nulls_of_json_text_are_not_rendered_as_none() -> None:
    tools = '[{"name": "f", "description": null, "parameters": {"properties": {"a": {"type": null, "items": null}}}}]'
    conversation = conversations_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tools)
    text = str(load_chat_template("default").render(conversation))
    assert "Tool Description: \\n" in text and "- a (): " in text and "None" not in text


def conversations_of(messages: list[dict[str, Any]], tools: str) -> Conversation:
    handler, _ = create_handler("SharegptStyleInstructionHandler", KEYS)
    assert handler is not None
    return handler.conversation({"messages": messages, "tools": tools})


def test_a_map_is_the_object_that_it_is_in_json(tmp_path: Path) -> None:
    pairs = [[("town", "Oslo")], [("town", "Oslo"), ("town", "Rome")], [("day", "today")]]
    table = pyarrow.table({"a": pyarrow.array(pairs, pyarrow.map_(pyarrow.string(), pyarrow.string()))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = list(read_rows(find_files([str(tmp_path / "a.parquet")])))
    assert [one.value for one in rows] == [{"a": {"town": "Oslo"}}, None, {"a": {"day": "today"}}]
    assert [one.problem for one in rows] == [None, "a map with the same key twice", None]


@pytest.mark.parametrize(
    "value",
    [
        {"name": "f", "arguments": {"a": float("nan")}},
        {"name": "f", "arguments": {"a": float("inf")}},
        '{"name": "f", "arguments": {"a": NaN}}',
        {"name": "f", "arguments": '{"a": 1e999}'},
        {"name": "f", "arguments": '{"a": 1'},
        {"name": "f", "arguments": "here"},
        '{"name": "f", "arguments": "{\\"a\\": 1"}',
        '{"name": "f"}',
    ],
)
def test_arguments_that_are_no_json_make_a_bad_row(value: Any) -> None:
    with pytest.raises(InvalidRowError, match="function call is not JSON with name and arguments"):
        parse_calls(value)


QUOTED = json.dumps({"a": 1})


@pytest.mark.parametrize(
    "value",
    [
        {"name": "f", "arguments": {"a": 1}},
        {"name": "f", "arguments": QUOTED},
        {"name": "f", "arguments": json.dumps(QUOTED)},
        {"type": "function", "function": {"name": "f", "arguments": QUOTED}},
        [{"function": {"name": "f", "arguments": {"a": 1}}}],
        json.dumps({"name": "f", "arguments": QUOTED}),
        json.dumps([{"name": "f", "arguments": json.dumps(QUOTED)}]),
        json.dumps({"type": "function", "function": {"name": "f", "arguments": QUOTED}}),
    ],
)
def test_arguments_are_an_object_however_they_are_written(value: Any) -> None:
    assert parse_calls(value) == (FunctionCall("f", '{"a": 1}'),)


def test_calls_without_arguments_have_an_empty_object() -> None:
    for arguments in ({}, "", "{}", None):
        assert parse_calls({"name": "f", "arguments": arguments}) == (FunctionCall("f", "{}"),)
    assert parse_calls({"function": {"name": "f"}}) == (FunctionCall("f", "{}"),)
