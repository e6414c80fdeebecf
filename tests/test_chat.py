"""Rows become conversations or reasons; templates render them as MindSpeed-LLM's fields mean."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_llm.chat import (
    HANDLERS,
    ChatTemplate,
    Conversation,
    InvalidRowError,
    Turn,
    chat_template_names,
    create_handler,
    load_chat_template,
    parse_map_keys,
)
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.errors import ConfigError

ALPACA, SHAREGPT = "AlpacaStyleInstructionHandler", "SharegptStyleInstructionHandler"


def parse_row(value: Any, handler: str = ALPACA, map_keys: str | None = None) -> Conversation:
    made, problems = create_handler(handler, map_keys)
    assert made is not None, problems
    return made.conversation(value)


def rendered(template: ChatTemplate, conversation: Conversation) -> list[tuple[str, bool]]:
    """(text, trained) of every span in order; special tokens as <begin>, <end>, <token x>."""
    spans = [span for turn in template.render(conversation) for part in turn for span in part] + template.closing
    names = {"text": "{}", "token": "<token {}>", "begin": "<begin>", "end": "<end>"}
    return [(names[span.kind].format(span.text), span.trained) for span in spans]


def test_alpaca_rows() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "extra": 1}
    assert parse_row(row) == Conversation([Turn("Add.\n1 2", "3")])
    assert parse_row({**row, "input": ""}).turns == [Turn("Add.", "3")]
    assert parse_row({**row, "input": None}).turns == [Turn("Add.", "3")]
    full = parse_row({**row, "system": "Be brief.", "history": [["Hi", "Hello"], ["Who?", "I."]]})
    assert full == Conversation([Turn("Hi", "Hello"), Turn("Who?", "I."), Turn("Add.\n1 2", "3")], "Be brief.")
    assert parse_row({"q": "Add.", "output": "3"}, map_keys='{"prompt": "q"}').turns == [Turn("Add.", "3")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (7, "row is not an object"),
        ({"output": "3"}, "instruction is missing"),
        ({"instruction": None, "output": "3"}, "instruction is missing"),
        ({"instruction": " ", "output": "3"}, "instruction is empty"),
        ({"instruction": ["a"], "output": "3"}, "instruction is not text"),
        ({"instruction": "a"}, "answer is missing"),
        ({"instruction": "a", "output": ""}, "answer is empty"),
        ({"instruction": "a", "output": 3}, "answer is not text"),
        ({"instruction": "a", "input": 3, "output": "b"}, "input is not text"),
        ({"instruction": "a", "output": "\ud800"}, "answer is not Unicode text"),
        ({"instruction": "a", "output": "b", "history": 5}, "history is not a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "history is not a list of pairs"),
        ({"instruction": "a", "output": "b", "history": [["x", None]]}, "answer in the history is missing"),
        ({"instruction": "a", "output": "b", "system": 1}, "system is not text"),
    ],
)
def test_bad_alpaca_rows_have_a_reason(row: Any, reason: str) -> None:
    with pytest.raises(InvalidRowError, match=f"^{reason}$"):
        parse_row(row)


def says(*messages: str) -> dict[str, Any]:
    roles = {"h": "human", "g": "gpt", "o": "observation", "s": "system", "f": "function_call", "x": "narrator"}
    return {"conversations": [{"from": roles[text[0]], "value": text[1:]} for text in messages]}


def test_sharegpt_rows() -> None:
    conversation = parse_row(says("sBe brief.", "hHi", "gHello", "oresult", "gDone"), SHAREGPT)
    assert conversation == Conversation([Turn("Hi", "Hello"), Turn("result", "Done", "observation")], "Be brief.")
    assert parse_row({**says("hHi", "gYo"), "system": "S"}, SHAREGPT).system == "S"
    assert parse_row({**says("s", "hHi", "gYo"), "system": "S"}, SHAREGPT).system == ""
    cut = parse_row(says("hHi", "gYo", "hAnd?"), SHAREGPT)
    assert cut == Conversation([Turn("Hi", "Yo")], cut_prompt=True)
    keys = '{"messages": "messages", "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"}}'
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "gpt", "content": "Yo"}]}
    assert parse_row(row, SHAREGPT, keys).turns == [Turn("Hi", "Yo")], "a partial map keeps the other tags"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "conversation is missing"),
        ({"conversations": "hi"}, "conversation is not a list"),
        ({"conversations": []}, "conversation is empty"),
        ({"conversations": ["hi"]}, "message is not an object"),
        ({"conversations": [{"value": "x"}]}, "message has no role"),
        (says("hHi"), "answer is missing"),
        (says("gYo", "hHi"), "roles out of order"),
        (says("hHi", "hHi"), "roles out of order"),
        (says("hHi", "sBe brief.", "gYo"), "roles out of order"),
        (says("hHi", "xYo"), r"unknown role 'narrator' in conversations\[1\].from"),
        (says("hHi", "g"), "message is empty"),
        (says("hHi", "f{}"), "function call is not JSON with name and arguments"),
        (says("hHi", "fcall"), "function call is not JSON with name and arguments"),
        (says("hHi", "f[]"), "function call is not JSON with name and arguments"),
        (says("hHi", 'f{"name": 1, "arguments": {}}'), "function call is not JSON with name and arguments"),
        (says("hHi", "o42"), "roles out of order"),
        (says('f{"name": "a", "arguments": 1}', "gYo"), "roles out of order"),
        ({**says("hHi", "gYo"), "tools": "[...]"}, "tools are not a list of functions"),
        ({**says("hHi", "gYo"), "tools": {"name": "f"}}, "tools are not a list of functions"),
        ({**says("hHi", "gYo"), "tools": [{"name": "f", "parameters": []}]}, "tools are not a list of functions"),
        ({**says("hHi", "gYo"), "tools": [{"name": "f\udc00"}]}, "tools are not a list of functions"),
    ],
)
def test_bad_sharegpt_rows_have_a_reason(row: Any, reason: str) -> None:
    with pytest.raises(InvalidRowError, match=f"^{reason}$"):
        parse_row(row, SHAREGPT)


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["human", "gpt", "system"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value"]), inner, max_size=2),
    max_leaves=12,
)
columns = st.sampled_from(["instruction", "input", "output", "system", "history", "conversations", "tools"])


@given(st.dictionaries(columns, values, max_size=6) | values, st.sampled_from(sorted(HANDLERS)))
def test_any_row_is_a_conversation_or_a_bad_row(row: Any, handler: str) -> None:
    try:
        conversation = parse_row(row, handler)
    except InvalidRowError:
        return
    assert conversation.turns and all(turn.answer or turn.calls for turn in conversation.turns)
    assert HANDLERS[handler].plain or all(turn.prompt for turn in conversation.turns)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"promt": "q"}', "unknown key 'promt'; the keys of this handler are prompt, query"),
        ('{"prompt": 3}', "'prompt' must be a name, as JSON text; it is 3"),
        ('{"tags": {}}', "unknown key 'tags'"),
    ],
)
def test_bad_map_keys_are_named(text: str, problem: str) -> None:
    _, problems = parse_map_keys(text, HANDLERS[ALPACA])
    assert len(problems) == 1 and problem in problems[0] and problems[0].startswith("--map-keys")


def test_lists_may_be_written_as_json() -> None:
    """As in a CSV file, whose cells hold text alone."""
    row = {"instruction": "Add.", "output": "3", "history": '[["a", "b"]]'}
    assert parse_row(row).turns == [Turn("a", "b"), Turn("Add.", "3")]
    assert parse_row({**row, "history": "[]"}).turns == parse_row({**row, "history": ""}).turns
    conversation = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert parse_row({"conversations": json.dumps(conversation)}, SHAREGPT).turns == [Turn("a", "b")]
    for value in ("[", "7", "[" * 100_000, "{}"):
        with pytest.raises(InvalidRowError, match="history is not a list of pairs"):
            parse_row({**row, "history": value})
        with pytest.raises(InvalidRowError, match="conversation is not a list"):
            parse_row({"conversations": value}, SHAREGPT)


def test_an_empty_name_means_no_column() -> None:
    row = {"question": "Add.", "input": "1 2", "output": "3", "history": [["a", "b"]], "": "x"}
    keys = '{"prompt": "question", "query": "", "history": null}'
    assert parse_row(row, map_keys=keys).turns == [Turn("Add.", "3")]
    assert parse_map_keys('{"tags": {"role_tag": ""}}', HANDLERS[SHAREGPT])[1] == [
        "--map-keys: tags: 'role_tag' must be a name, as JSON text; it is \"\""
    ]


def test_several_faults_of_map_keys_come_together() -> None:
    _, problems = parse_map_keys('{"a": "x", "tags": {"b": "x", "user_tag": 1}}', HANDLERS[SHAREGPT])
    assert len(problems) == 3
    assert parse_map_keys('{"tags": 3}', HANDLERS[SHAREGPT])[1] == ["--map-keys: 'tags' is not a JSON object"]


def test_unknown_handlers_are_refused_with_the_list() -> None:
    assert ALPACA in create_handler("AlpacaHandler", None)[1][0]
    for name in (ALPACA, SHAREGPT, "GeneralPretrainHandler", "AlpacaPretrainHandler"):
        assert name in create_handler("AlpacaHandler", None)[1][0]


def test_columns_that_no_row_has_are_known() -> None:
    handler, _ = create_handler(ALPACA, '{"prompt": "instruction", "query": "quarry"}')
    assert handler is not None
    handler.conversation({"instruction": "a", "output": "b"})
    assert handler.unseen == {"quarry"}


TALK = Conversation([Turn("hi", "yo"), Turn("and", "so")])


def test_qwen() -> None:
    assert rendered(load_chat_template("qwen"), TALK) == [
        ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", False),
        ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("yo", True),
        ("<end>", True),
        ("\n", False),
        ("<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n", False),
        ("so", True),
        ("<end>", True),
    ]
    assert load_chat_template("qwen").end_token == "<|im_end|>"
    assert (
        rendered(load_chat_template("qwen"), Conversation([Turn("a", "b")], "S"))[0][0]
        == "<|im_start|>system\nS<|im_end|>\n"
    )


def test_llama2_puts_the_system_text_into_the_first_prompt() -> None:
    template = load_chat_template("llama2")
    assert rendered(template, Conversation(TALK.turns, "S")) == [
        ("<begin>", False),
        ("[INST] <<SYS>>\nS\n<</SYS>>\n\nhi [/INST]", False),
        ("yo", True),
        ("<end>", True),
        ("<begin>", False),
        ("[INST] and [/INST]", False),
        ("so", True),
        ("<end>", True),
    ]
    span = template.render(Conversation(TALK.turns, "S"))[0].prompt[1]
    assert span.text[slice(*span.content)] == "hi"
    assert template.begins and not load_chat_template("qwen").begins


def test_default_and_empty() -> None:
    assert rendered(load_chat_template("default"), TALK)[0] == ("Human: hi\nAssistant:", False)
    assert rendered(load_chat_template("empty"), TALK) == [("hi", False), ("yo", True), ("and", False), ("so", True)]


def test_one_end_token_for_the_sample() -> None:
    template = load_chat_template("chatglm3")
    turns = template.render(TALK)
    assert [span.end_label for span in turns[0].prompt] == [False] * 6
    assert [span.end_label for span in turns[1].prompt] == [True, False, False, False]
    assert rendered(template, TALK)[-3:] == [("\n", True), ("so", True), ("<end>", True)]
    assert rendered(template, TALK)[:2] == [("<token [gMASK]>", False), ("<token sop>", False)]


def test_turn_numbers_and_messages_that_look_like_placeholders() -> None:
    template = load_chat_template("chatglm2")
    conversation = Conversation([Turn("{{idx}}", "a"), Turn("{{content}}", "b")])
    texts = [text for text, _ in rendered(template, conversation)]
    assert texts[2] == "[Round 0]\n\n问：{{idx}}\n\n答：" and texts[4:6] == [
        "\n\n",
        "[Round 1]\n\n问：{{content}}\n\n答：",
    ]


def test_observations_have_their_own_slots() -> None:
    conversation = Conversation([Turn("hi", "yo"), Turn("42", "so", "observation")])
    assert ("<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n", False) in rendered(
        load_chat_template("qwen"), conversation
    )


def test_every_template_loads_and_trains_exactly_the_answers() -> None:
    names = chat_template_names()
    assert {"qwen", "llama2", "default", "empty"} <= set(names)
    for name in names:
        template = load_chat_template(name)
        assert template.name == name
        trained = "".join(text for text, is_trained in rendered(template, TALK) if is_trained and text != "<end>")
        assert "yo" in trained and "so" in trained and "hi" not in trained and "and" not in trained


def test_templates_equal_those_of_mindspeed_llm(shared: Path) -> None:
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    for entry in entries:
        ours, theirs = load_chat_template(entry["name"]), parse_template(entry)
        # Several replies in a row are not in that list.
        assert ours == dataclasses.replace(theirs, replies=ours.replies, sha256=ours.sha256), entry["name"]


def test_a_users_file_of_either_shape(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "user": ["<u>{{content}}<a>"]}))
    assert rendered(load_chat_template("mine", str(path)), TALK)[:3] == [
        ("<u>hi<a>", False),
        ("yo", True),
        ("<end>", True),
    ]
    path.write_text(
        json.dumps([{"name": "mine", "format_user": {"slots": [["bos_token"], "{{content}}:"]}}, {"name": "b"}])
    )
    assert rendered(load_chat_template("mine", str(path)), TALK)[:2] == [("<begin>", False), ("hi:", False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('[{"name": "other"}]', "no template named 'mine'; the file contains other"),
        ('{"name": "mine", "usr": []}', "unknown field 'usr'"),
        ('{"name": "mine", "user": "x"}', "'user' is not a list"),
        ('{"name": "mine", "user": ["x"]}', r"'user' must contain {{content}} once"),
        ('{"name": "mine", "prefix": [{"tok": 1}]}', r'{"tok": 1} is not a slot'),
        ('{"name": "mine", "separator": ["{{content}}"]}', "'separator' has no message"),
        ('{"name": "mine", "format_user": {"slots": [["cls_token"]]}}', "is not a slot"),
    ],
)
def test_bad_template_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_chat_template("mine", str(path))
    assert message in str(caught.value) and "mine" in str(caught.value)


def test_unknown_templates_are_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the templates are .*qwen"):
        load_chat_template("../qwen")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_chat_template("qwen", str(tmp_path / "none.json"))
