"""Rows with messages are recognised without --map-keys: ShareGPT's, OpenAI's, and combinations of both."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from row_files import OPENAI_KEYS

from mindspeed_llm.chat import Conversation, InvalidRowError, Turn, create_handler, fitting_handlers

ALPACA, SHAREGPT, TEXT = "AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler", "GeneralPretrainHandler"
NAMES = {
    "user": ("human", "user"),
    "assistant": ("gpt", "assistant", "model", "bot"),
    "observation": ("observation", "tool", "function", "tool_response"),
    "function": ("function_call", "tool_call"),
    "system": ("system", "developer"),
}
CALL = '{"name": "add", "arguments": {"a": 2}}'
TALK = [("system", "Be brief."), ("user", "2+3?"), ("function", CALL), ("observation", "5"), ("assistant", "Five.")]


def parsed(row: dict[str, Any], map_keys: Any = None) -> Conversation:
    handler, problems = create_handler(SHAREGPT, None if map_keys is None else json.dumps(map_keys))
    assert handler is not None, problems
    return handler.conversation(row)


def row_of(messages: list[tuple[str, str]], column: str, role: str, content: str) -> dict[str, Any]:
    return {column: [{role: name, content: text} for name, text in messages]}


def shape(column: str, **fields: str) -> dict[str, Any]:
    return {"messages": column, "tags": {f"{key}_tag": name for key, name in fields.items()}}


@given(data=st.data())
def test_every_combination_of_names_gives_the_same_conversation(data: st.DataObject) -> None:
    wanted = parsed(row_of([("function_call" if name == "function" else NAMES[name][0], text) for name, text in TALK],
                           "conversations", "from", "value"))  # fmt: skip
    assert [turn.answer for turn in wanted.turns] == ["", "Five."] and wanted.system == "Be brief."
    messages = [(data.draw(st.sampled_from(NAMES[name])), text) for name, text in TALK]
    column = data.draw(st.sampled_from(["conversations", "messages"]))
    role, content = data.draw(st.sampled_from([("from", "value"), ("role", "content")]))
    row = row_of(messages, column, role, content)
    assert parsed(row) == wanted
    assert parsed({**row, ("messages" if column == "conversations" else "conversations"): None}) == wanted
    # A columnar file holds the fields of every message in each of them.
    nulls = {"from": None, "value": None, "role": None, "content": None, "tool_calls": None}
    assert parsed({column: [{**nulls, **message} for message in row[column]]}) == wanted
    assert parsed({column: json.dumps(row[column])}) == wanted, "as the cell of a CSV file"


def test_openai_tool_calls_and_tools_need_no_setting() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "2+3?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
        {"role": "assistant", "content": "Five.", "weight": 0},
    ]
    row = {"messages": messages, "tools": [{"type": "function", "function": {"name": "add"}}]}
    named = OPENAI_KEYS | {"system": "system", "tools": "tools"}
    assert parsed(row) == parsed(row, named)
    assert parsed(row).tools and parsed(row).turns[0].calls[0].name == "add" and not parsed(row).turns[1].trained


def test_a_row_with_both_columns_is_read_from_conversations() -> None:
    both = row_of([("human", "a"), ("gpt", "b")], "conversations", "from", "value")
    both |= row_of([("user", "c"), ("assistant", "d")], "messages", "role", "content")
    assert parsed(both).turns == [Turn("a", "b")]
    assert parsed(both, {"messages": "messages"}).turns == [Turn("c", "d")]


def test_map_keys_win() -> None:
    row = row_of([("user", "a"), ("assistant", "b")], "messages", "role", "content")
    for keys, reason in (
        ({"messages": "conversations"}, "conversation is missing"),
        ({"messages": "messages", "tags": {"role_tag": "from"}}, "message has no role"),
        (shape("messages", role="role", content="content", user="human"), "unknown role 'user' in messages[0].role"),
        ({"messages": ""}, "conversation is missing"),
    ):
        with pytest.raises(InvalidRowError) as error:
            parsed(row, keys)
        assert str(error.value) == reason
    swapped = shape("messages", user="assistant", assistant="user")
    turned = row_of([("assistant", "a"), ("user", "b")], "messages", "role", "content")
    assert parsed(turned, swapped).turns == [Turn("a", "b")]
    turned = row_of([("assistant", "a"), ("gpt", "b")], "messages", "role", "content")
    given_name = parsed(turned, {"tags": {"user_tag": "assistant"}})
    assert given_name.turns == [Turn("a", "b")], "a given name is not the known one of another role"


def test_an_unknown_role_is_named_with_its_place() -> None:
    row = row_of([("user", "a"), ("assistant", "b"), ("narrator\x1b" + "x" * 99, "c")], "messages", "role", "content")
    with pytest.raises(InvalidRowError) as error:
        parsed(row)
    assert str(error.value) == f"unknown role 'narrator\\x1b{'x' * 31}' in messages[2].role"
    sharegpt = row_of([("Human", "a"), ("gpt", "b")], "conversations", "from", "value")
    with pytest.raises(InvalidRowError, match=r"^unknown role 'Human' in conversations\[0\]\.from$"):
        parsed(sharegpt)


def test_reasoning_is_left_out_of_both_kinds() -> None:
    handler, _ = create_handler(SHAREGPT, None)
    assert handler is not None
    handler.ignore_reasoning()
    answer = {"role": "assistant", "content": "b", "reasoning_content": "Hm."}
    conversation = handler.conversation({"messages": [{"role": "user", "content": "a"}, answer]})
    assert conversation.turns == [Turn("a", "b")] and handler.pop_unread_fields() == {"reasoning_content"}


@pytest.mark.parametrize(
    ("columns", "map_keys", "fitting"),
    [
        (["instruction", "output"], None, [ALPACA]),
        (["instruction", "input", "output", "text"], None, [ALPACA]),
        (["conversations"], None, [SHAREGPT]),
        (["id", "messages"], None, [SHAREGPT]),
        (["text"], None, [TEXT]),
        (["text", "label"], None, []),
        (["instruction"], None, []),
        (["instruction", "output", "messages"], None, [ALPACA, SHAREGPT]),
        (["question", "answer"], {"prompt": "question", "response": "answer"}, [ALPACA]),
        (["chat"], {"messages": "chat"}, [SHAREGPT]),
        (["messages"], {"messages": "chat"}, []),
        (["body"], {"text": "body"}, [TEXT]),
        ([], None, []),
    ],
)
def test_the_columns_decide_the_handler(columns: list[str], map_keys: Any, fitting: list[str]) -> None:
    assert fitting_handlers(columns, None if map_keys is None else json.dumps(map_keys)) == fitting
