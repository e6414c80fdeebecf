"""Fields of messages beside their text: thoughts, old function calls, marks of what is not to be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from preprocess_command import Command
from small_tokenizers import CharacterTokenizer, byte_level_folder

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import (
    Conversation,
    FunctionCall,
    InvalidRowError,
    JinjaTemplate,
    Turn,
    create_handler,
    load_chat_template,
)
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.chat.handlers import Handler
from mindspeed_llm.chat.renderer import Renderer
from mindspeed_llm.tokenization import SampleBuilder

SHAREGPT = "SharegptStyleInstructionHandler"
TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
KEYS = json.dumps({"messages": "messages", "tags": {**TAGS, "observation_tag": "tool"}})
ASKED = {"role": "user", "content": "2+3?"}


def handler() -> Handler:
    made, problems = create_handler(SHAREGPT, KEYS)
    assert made is not None, problems
    return made


def conversation_of(*messages: dict[str, Any]) -> Conversation:
    return handler().conversation({"messages": list(messages)})


def answer(content: Any = "5", **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def trained(template: Renderer, conversation: Conversation, **options: Any) -> tuple[str, str]:
    """(the whole sample, what of it is trained) as text; E is the template's end token."""
    tokenizer = CharacterTokenizer()
    batch = SampleBuilder(tokenizer, template, None, **options).build([conversation])
    end = SampleBuilder(tokenizer, template, None).eos_id

    def text(ids: list[int]) -> str:
        return "".join("E" if number == end else tokenizer.decode([number]) for number in ids if number != IGNORE_INDEX)

    return text(batch.ids.tolist()), text(batch.labels.tolist())


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_reasoning_in_its_own_field_is_rendered_by_the_template(name: str) -> None:
    made = conversation_of(ASKED, answer(**{name: "\nTwo and three.\n"}))
    whole, labels = trained(load_chat_template("qwen3"), made)
    assert labels == "<think>\nTwo and three.\n</think>\n\n5E" and "<think>\n\n</think>" not in whole
    inside = conversation_of(ASKED, answer("<think>\nTwo and three.\n</think>\n\n5"))
    assert trained(load_chat_template("qwen3"), inside) == (whole, labels)
    both = conversation_of(ASKED, answer("<think>Two and three.</think>5", **{name: "Two and three."}))
    assert trained(load_chat_template("qwen3"), both) == (whole, labels), "written once"


def test_reasoning_in_several_parts_or_before_calls() -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "5", "thinking": None}]
    assert conversation_of(ASKED, answer(parts)).turns == [Turn("2+3?", "5", thought="Hm.")]
    call = {"name": "add", "arguments": "{}"}
    called = conversation_of(
        ASKED, answer(None, tool_calls=[{"function": call}], reasoning="Hm.", reasoning_content="Hm.")
    )
    assert called.turns == [Turn("2+3?", "", calls=(FunctionCall("add", "{}"),), thought="Hm.")]
    assert "<think>\nHm.\n</think>\n\n<tool_call>" in trained(load_chat_template("qwen3"), called)[1]
    for empty in ("", None, "\n"):
        assert (
            "<think>\n\n</think>\n\n5E"
            in trained(load_chat_template("qwen3"), conversation_of(ASKED, answer(thinking=empty)))[0]
        )
    with pytest.raises(InvalidRowError, match="two different thoughts"):
        conversation_of(ASKED, answer(reasoning="a", thinking="b"))
    with pytest.raises(InvalidRowError, match="message is not text"):
        conversation_of({"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}, answer())


def test_reasoning_of_earlier_answers_is_not_rendered() -> None:
    made = conversation_of(ASKED, answer(thinking="a"), ASKED, answer(thinking="b"))
    assert trained(load_chat_template("qwen3"), made)[1] == "5E<think>\nb\n</think>\n\n5E"
    off = load_chat_template("qwen3").with_options(enable_thinking=False)
    assert trained(off, made)[1] == "5E5E"


def test_a_chat_template_receives_reasoning_under_the_names_that_it_uses() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{% if m.thinking %}"
        "({{ m.thinking }}){% endif %}{{ m.content }};{% endgeneration %}{% else %}{{ m.content }};{% endif %}"
        "{% endfor %}"
    )
    template = JinjaTemplate(source, {})
    made = conversation_of(ASKED, answer(reasoning_content="Hm.", weight=0), ASKED, answer(reasoning="So."))
    assert template.has_reasoning
    assert trained(template, made) == ("user:2+3?;assistant:(Hm.)5;user:2+3?;assistant:(So.)5;", "(So.)5;")
    assert not JinjaTemplate(source.replace("m.thinking", "m.mood"), {}).has_reasoning


def test_the_older_function_call_field_is_read() -> None:
    call = {"name": "add", "arguments": '{"a": 2}'}
    replied = {"role": "function", "name": "add", "content": "5"}
    made = conversation_of(ASKED, answer(None, function_call=call), replied, answer("Five."))
    new = [answer(None, tool_calls=[{"type": "function", "function": call}]), {"role": "tool", "content": "5"}]
    assert made == conversation_of(ASKED, *new, answer("Five."))
    assert conversation_of(ASKED, answer("So:", function_call=json.dumps(call))).turns[0].calls == made.turns[0].calls
    assert (
        conversation_of(ASKED, answer(None, function_call=call, tool_calls=[call])).turns[0].calls
        == made.turns[0].calls
    )
    for nothing in (None, "", "{}", "[]", {}, {"name": None, "arguments": None}):
        assert conversation_of(ASKED, answer(function_call=nothing, tool_calls=nothing)).turns == [Turn("2+3?", "5")]
    with pytest.raises(InvalidRowError, match="tool_calls and function_call of an answer differ"):
        conversation_of(ASKED, answer(None, function_call=call, tool_calls=[{**call, "name": "sub"}]))


def test_unread_fields_with_text_are_detected() -> None:
    made = handler()
    rows = [ASKED | {"refusal": " ", "audio": None, "score": 3}, answer(refusal="No.", notes=[{"a": ["x"]}], weight=1)]
    made.conversation({"messages": rows})
    assert made.unread == {"refusal", "notes"}
    made.unread.clear()
    made.ignore_reasoning()
    assert made.conversation({"messages": [ASKED, answer(reasoning="Hm.")]}).turns == [Turn("2+3?", "5")]
    assert made.unread == {"reasoning"}


def test_unread_fields_are_reported_once_per_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(tmp_path, byte_level_folder(tmp_path / "tokenizer"))
    rows = [{"messages": [ASKED, answer(reasoning="Hm.", **{"\x1bx": "y"})]}] * 700  # two batches
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--input", str(tmp_path / "*.jsonl"), "--handler-name", SHAREGPT, "--map-keys", KEYS]
    cache = ["--cache-dir", str(tmp_path / "cache")]
    for flags, names in ((cache, "\\u001bx, reasoning; the template qwen"), (["--prompt-type", "qwen3"], "\\u001bx\n")):
        for _ in range(2):  # the second time from the kept tokens
            command.run(*given, *flags)
            said = capsys.readouterr().err
            assert said.count("hold text and are not read: " + names) == 2 and said.count("hold text") == 2, said
            assert f"notice: {tmp_path / 'a.jsonl'}: fields of messages" in said


TINY = parse_template({"name": "tiny", "user": ["<{{content}}>"], "separator": ["|"]})
ONCE = parse_template({"name": "once", "user": ["<{{content}}>"], "separator": ["|"], "end_once": True})


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"loss_scale": 0}, {"masked": True}]
)
def test_answers_that_the_data_mark_are_not_trained(mark: dict[str, Any]) -> None:
    first, last = answer("a", **mark), answer("b", weight=1, loss=True, train=None, masked=False)
    assert trained(TINY, conversation_of(ASKED, first, ASKED, last)) == ("<2+3?>aE|<2+3?>bE", "bE")
    assert trained(TINY, conversation_of(ASKED, last, ASKED, first)) == ("<2+3?>bE|<2+3?>aE", "bE")
    assert trained(ONCE, conversation_of(ASKED, first, ASKED, last)) == ("<2+3?>a|<2+3?>bE", "bE")
    assert trained(ONCE, conversation_of(ASKED, last, ASKED, first)) == ("<2+3?>b|<2+3?>aE", "bE"), (
        "the end after b, as a label"
    )
    everything = {"train_prompts": True}
    assert trained(TINY, conversation_of(ASKED, first, ASKED, last), **everything)[1] == "<2+3?>|<2+3?>bE"
    assert trained(TINY, conversation_of(ASKED | mark, last), **everything)[1] == "bE"
    assert trained(TINY, conversation_of(ASKED, last, ASKED, first), mask_history=True)[1] == ""


def test_an_appended_end_token_is_trained_with_its_answer() -> None:
    last = [ASKED, answer("b"), ASKED, answer("a", weight=0)]
    for name, whole in (("empty", "2+3?b2+3?aE"), ("default", None)):
        found, labels = trained(load_chat_template(name), conversation_of(*last), append_end=True)
        assert found == (whole or found) and found.endswith("aE") and labels == ("b" if name == "empty" else "bE")
    found, labels = trained(load_chat_template("qwen3"), conversation_of(*last), append_end=True)
    assert found.endswith("aE\n") and labels == "bE"
    thinking = load_chat_template("qwen3").with_options(enable_thinking=True)
    assert trained(thinking, conversation_of(*last))[1] == "bE", "nor is its empty thought"


def test_a_row_without_a_trained_answer_is_no_sample() -> None:
    made = [
        conversation_of(ASKED, answer(weight=0)),
        conversation_of(ASKED, answer("x" * 30), ASKED, answer("y" * 30, weight=0)),
    ]
    for capacity in (None, 40):
        batch = SampleBuilder(CharacterTokenizer(), TINY, capacity).build(made)
        wanted = [(0, "no trained token"), *([(1, "no trained token")] if capacity else [])]
        assert batch.skipped == wanted


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"weight": 0.5}, "weight of a message is 0.5"),
        ({"weight": 2}, "weight of a message is 2"),
        ({"loss": "false"}, 'loss of a message is "false"'),
        ({"train": [0]}, r"train of a message is \[0\]"),
        ({"weight": float("nan")}, "weight of a message is nan"),
        ({"weight": -1, "loss": True}, "weight of a message is -1"),
    ],
)
def test_other_weights_make_a_bad_row_that_names_them(mark: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRowError, match=said):
        conversation_of(ASKED, answer(**mark))
    with pytest.raises(InvalidRowError, match=said):
        conversation_of(ASKED | mark, answer())
