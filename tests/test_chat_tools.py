"""Tools, function calls and thoughts: what rows may say, and how each format writes it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow
import pytest
from small_tokenizers import CharacterTokenizer

from mindspeed_llm.boundaries import IGNORED
from mindspeed_llm.chat import (
    ChatTemplate,
    Conversation,
    FunctionCall,
    InvalidRowError,
    Turn,
    create_handler,
    load_chat_template,
)
from mindspeed_llm.chat.tool_formats import parse_tools, tool_formats
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization import SampleBuilder

SHAREGPT = "SharegptStyleInstructionHandler"
OPENAI = json.dumps(
    {
        "messages": "messages",
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "observation_tag": "tool",
        },
    }
)
WEATHER = {"name": "weather", "description": "Says it.", "parameters": {"type": "object", "properties": {"at": {}}}}


def conversation(row: Any, map_keys: str | None = None) -> Conversation:
    handler, problems = create_handler(SHAREGPT, map_keys)
    assert handler is not None, problems
    return handler.conversation(row)


def text(template: ChatTemplate, talk: Conversation) -> str:
    """The whole sample; trained text stands in «»."""
    spans = [span for turn in template.render(talk) for part in turn for span in part] + template.closing
    end = template.end_token or "</s>"
    shown = "".join(
        f"«{end if span.kind == 'end' else span.text}»" if span.trained else span.text
        for span in spans
        if span.kind in ("text", "end")
    )
    return shown.replace("»«", "")


def says(*messages: tuple[str, str], **columns: Any) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in messages], **columns}


ROW = says(
    ("human", "Rain?"),
    ("function_call", '{"name": "weather", "arguments": {"at": "北京"}}'),
    ("observation", "dry"),
    ("gpt", "No."),
    tools=json.dumps([WEATHER]),
)


def test_rows_with_tools_and_calls() -> None:
    talk = conversation(ROW)
    assert talk.tools == (WEATHER,)
    assert talk.turns == [
        Turn("Rain?", "", calls=(FunctionCall("weather", '{"at": "北京"}'),)),
        Turn("dry", "No.", "observation"),
    ]
    as_list = conversation({**ROW, "tools": [{"type": "function", "function": WEATHER}]})
    assert as_list == talk, "a list, and OpenAI's wrapping, mean the same"
    assert conversation({**ROW, "tools": ""}).tools == conversation({**ROW, "tools": "[]"}).tools == ()
    two = says(("human", "a"), ("function_call", '[{"name": "f", "arguments": 1}, {"name": "g", "arguments": "x"}]'))
    assert conversation(two).turns[0].calls == (FunctionCall("f", "1"), FunctionCall("g", '"x"'))


def test_openais_messages() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "北京"}'}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "Ra"}, {"type": "text", "text": "in?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "dry"},
        {"role": "assistant", "content": "No.", "tool_calls": None},
        {"role": "user", "content": "Thanks"},
    ]
    talk = conversation({"messages": messages, "tools": [{"type": "function", "function": WEATHER}]}, OPENAI)
    assert talk == Conversation(conversation(ROW).turns, "S", cut_prompt=True, tools=(WEATHER,))
    for wrong, reason in (
        ({"role": "user", "content": [{"type": "image"}]}, "message is not text"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "function call is not JSON",
        ),
    ):
        with pytest.raises(InvalidRowError, match=reason):
            conversation({"messages": [messages[1], messages[2], wrong]}, OPENAI)


def test_several_replies_in_a_row() -> None:
    call = {"name": "f", "arguments": {}}
    both = ("function_call", json.dumps([call, call]))
    talk = conversation(says(("human", "a"), both, ("observation", "x"), ("observation", "y"), ("gpt", "b")))
    assert talk.turns[1] == Turn("x", "b", "observation", replies=("y",)) and len(talk.turns) == 2
    one = ("function_call", json.dumps(call))
    for calls, replies in ((one, 2), (both, 3), (("gpt", "c"), 2)):
        with pytest.raises(InvalidRowError, match="roles out of order"):
            conversation(says(("human", "a"), calls, *[("observation", "x")] * replies, ("gpt", "b")))
    with pytest.raises(InvalidRowError, match="roles out of order"):
        conversation(says(("human", "a"), both, ("human", "x"), ("human", "y"), ("gpt", "b")))
    assert text(load_chat_template("qwen"), talk).endswith(
        "<|im_start|>tool\nx<|im_end|>\n<|im_start|>tool\ny<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»"
    )
    assert text(load_chat_template("qwen3"), talk).endswith(
        "<|im_start|>user\n<tool_response>\nx\n</tool_response>\n<tool_response>\ny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n«b<|im_end|>»\n"
    )


def test_default_format() -> None:
    template = load_chat_template("default").with_options()
    assert text(template, conversation(ROW)) == (
        "You have access to the following tools:\n> Tool Name: weather\nTool Description: Says it.\nTool Args:\n"
        "  - at (): \n\nUse the following format if using a tool:\n```\nAction: tool name (one of [weather]).\n"
        "Action Input: the input to the tool, in a JSON format representing the kwargs "
        '(e.g. ```{"input": "hello world", "num_beams": 5}```).\n```\n\n'
        'Human: Rain?\nAssistant:«Action: weather\nAction Input: {"at": "北京"}</s>»\n'
        "Human: dry\nAssistant:«No.</s>»"
    )


def test_qwens_format() -> None:
    template = load_chat_template("qwen").with_options("qwen")
    schema = json.dumps({"type": "function", "function": WEATHER})
    assert text(template, conversation(ROW)) == (
        "<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to assist "
        "with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{schema}\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n"
        '«<tool_call>\n{"name": "weather", "arguments": {"at": "北京"}}\n</tool_call><|im_end|>»\n'
        "<|im_start|>tool\ndry<|im_end|>\n<|im_start|>assistant\n«No.<|im_end|>»"
    )
    both = Conversation([Turn("a", "Well.", calls=(FunctionCall("f", "1"), FunctionCall("g", "2")))])
    assert text(template, both).endswith(
        '«Well.\n<tool_call>\n{"name": "f", "arguments": 1}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": 2}\n</tool_call><|im_end|>»'
    )


def test_glm4s_format() -> None:
    template = load_chat_template("glm4")
    shown = text(template, conversation(ROW))
    body = json.dumps(WEATHER, indent=4)
    assert (
        "# 可用工具\n\n## weather\n\n" + body + "\n在调用上述函数时，请使用 Json 格式表示调用的参数。<|user|>" in shown
    )
    assert '<|assistant|>«weather\n{"at": "北京"}»<|observation|>\ndry<|assistant|>«\nNo.</s>»' in shown
    both = Conversation([Turn("a", "", calls=(FunctionCall("f", "1"), FunctionCall("g", "2")))])
    with pytest.raises(InvalidRowError, match="several function calls"):
        template.render(both)
    built = SampleBuilder(CharacterTokenizer(), template, None)
    batch = built.build([Conversation([Turn("a", "b")]), both, Conversation([Turn("c", "d")])])
    assert [number for number, _ in batch.skipped] == [1] and len(batch.lengths) == 2


def test_tools_of_columnar_files() -> None:
    """There each struct has the fields of all, null where it lacks them."""
    tools = [
        {"name": name, "description": "d", "parameters": {"properties": {word: {"type": "string"}}}}
        for name, word in (("one", "a"), ("two", "b"))
    ]
    (row,) = pyarrow.Table.from_pylist([{"tools": tools}]).to_pylist()
    assert row["tools"][0]["parameters"]["properties"]["b"] is None
    assert [list(tool["parameters"]["properties"]) for tool in parse_tools(row["tools"])] == [["a"], ["b"]]
    default = tool_formats()["default"]
    assert default.describe(parse_tools(row["tools"]), "") == default.describe(parse_tools(json.dumps(tools)), "")


def test_what_looks_like_a_field_is_text() -> None:
    odd = {"name": "{{arguments}}", "description": "{{name}}", "parameters": {}}
    talk = Conversation([Turn("a", "", calls=(FunctionCall("{{arguments}}", '"{{name}}"'),))], tools=(odd,))
    for name in tool_formats():
        shown = text(load_chat_template("default").with_options(name), talk)
        assert "{{arguments}}" in shown and '"{{name}}"' in shown


def think(*answers: str, enabled: bool | None = None) -> str:
    """The answers of qwen3, one user prompt (u) before each."""
    template = load_chat_template("qwen3").with_options(enable_thinking=enabled)
    whole = text(template, Conversation([Turn("u", answer) for answer in answers]))
    assert whole.startswith("<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"), "no default system text"
    return whole.replace("<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n", "| ")


def test_thoughts_of_qwen3() -> None:
    thought, empty = "<think>\nhm\n</think>\n\n", "<think>\n\n</think>\n\n"
    assert think(thought + "yo") == f"| «{thought}yo<|im_end|>»\n"
    assert think("<think>hm</think>yo") == f"| «{thought}yo<|im_end|>»\n", "line breaks as the model knows them"
    assert think("yo") == f"| {empty}«yo<|im_end|>»\n", "an empty thought is written for the model"
    assert think("yo", enabled=True) == f"| «{empty}yo<|im_end|>»\n"
    assert think(thought + "yo", enabled=False) == f"| {empty}«yo<|im_end|>»\n"
    history = f"| «so<|im_end|>»\n| «{thought}yo<|im_end|>»\n"
    assert think(thought + "so", thought + "yo") == history, "thoughts of earlier answers are not seen"
    call = (FunctionCall("f", "1"),)
    talk = Conversation([Turn("u", thought, calls=call), Turn("42", "yo", "observation")])
    called = '<tool_call>\n{"name": "f", "arguments": 1}\n</tool_call>'
    assert text(load_chat_template("qwen3"), talk).endswith(
        f"assistant\n«{thought}{called}<|im_end|>»\n"
        f"<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n{empty}«yo<|im_end|>»\n"
    ), "the user has not spoken since"


def test_options_show_in_the_hash_and_must_fit() -> None:
    qwen3 = load_chat_template("qwen3")
    hashes = {qwen3.with_options(*given).sha256 for given in ((), ("glm4",), (None, True), (None, False))}
    assert len(hashes) == 4 and qwen3.with_options() is qwen3 and qwen3.with_options("qwen") is qwen3
    with pytest.raises(ConfigError, match="--enable-thinking: the template qwen has no reasoning"):
        load_chat_template("qwen").with_options(enable_thinking=True)


def test_append_end_does_not_end_qwen3_twice() -> None:
    built = SampleBuilder(CharacterTokenizer(), load_chat_template("qwen3"), None, append_end=True)
    batch = built.build([Conversation([Turn("u", "yo")])])
    assert batch.ids.tolist().count(built.eos_id) == 2, "of the prompt, and of the answer"
    assert batch.labels[-1] == IGNORED and batch.labels[-2] == built.eos_id


def test_masks_of_several_answers() -> None:
    talk = Conversation([Turn("a", "b"), Turn("c", "d")])
    for name in ("qwen", "chatglm3"):  # an end token for each answer, and one for the sample
        tokenizer, template = CharacterTokenizer(), load_chat_template(name)
        plain = SampleBuilder(tokenizer, template, None).build([talk])
        everything = SampleBuilder(tokenizer, template, None, train_prompts=True).build([talk])
        last = SampleBuilder(tokenizer, template, None, mask_history=True).build([talk])
        assert everything.ids.tolist() == plain.ids.tolist() == last.ids.tolist() == everything.labels.tolist()
        trained = plain.labels != IGNORED
        first_turn = len(SampleBuilder(tokenizer, template, None).build([Conversation(talk.turns[:1])]).ids)
        assert (last.labels[first_turn:] == plain.labels[first_turn:]).all() and trained[:first_turn].any()
        assert (last.labels[: first_turn + 1] == IGNORED).all()


def test_alpaca_rows_with_tools() -> None:
    row = {"instruction": "Rain?", "output": 'Action: weather\nAction Input: {"at": "Oslo"}'}
    alpaca = "AlpacaStyleInstructionHandler"
    for keys, column in ((None, "tools"), ('{"tools": "functions"}', "functions")):
        handler, problems = create_handler(alpaca, keys)
        assert handler is not None, problems
        for tools in (json.dumps([WEATHER]), [{"type": "function", "function": WEATHER}]):
            talk = handler.conversation({**row, column: tools})
            assert talk.tools == (WEATHER,) and not talk.no_tools
        assert "> Tool Name: weather\nTool Description: Says it." in text(load_chat_template("qwen"), talk)
        for none, marked in (("[]", True), ([], False), ("", False), (None, False)):
            talk = handler.conversation({**row, column: none})
            assert (talk.tools, talk.no_tools) == ((), marked)
        with pytest.raises(InvalidRowError, match="tools are not a list of functions"):
            handler.conversation({**row, column: "hammer"})
    handler, _ = create_handler(alpaca, '{"tools": ""}')
    assert handler is not None and handler.conversation({**row, "tools": "hammer"}).tools == ()
    assert create_handler("AlpacaPretrainHandler", '{"tools": "x"}')[1], "plain text has none"
