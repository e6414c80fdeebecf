"""The trained text is found in what any chat template renders, and nothing is guessed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chat_messages import random_conversation
from chat_template_traits import ASKS, END_TOKENS, TEMPLATES, THOUGHTS, TWO_MARKS, USUAL
from small_tokenizers import byte_level_folder

from mindspeed_llm.chat import (
    ANSWER_NOT_FOUND,
    Conversation,
    FunctionCall,
    InvalidRowError,
    JinjaTemplate,
    RenderedTurn,
    Turn,
    create_handler,
)
from mindspeed_llm.chat.answer_spans import AnswerFinder
from mindspeed_llm.chat.content_marks import NONCHARACTERS, mark, read_marks
from mindspeed_llm.chat.template_messages import MessageForm, create_messages
from mindspeed_llm.errors import ConfigError

CALL = FunctionCall("look_up", '{"a": "<|end|>"}', "call1")
PLAIN = Conversation([Turn("hi", " yo\n"), Turn(" a ", "b")])
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def template_of(name: str, thinking: bool | None = None) -> JinjaTemplate:
    return JinjaTemplate(TEMPLATES[name], SPECIAL, thinking, END_TOKENS.get(name, ["<|end|>"]))


def trained(turns: list[RenderedTurn]) -> list[str]:
    return ["".join(span.text for span in turn.answer if span.trained) for turn in turns]


def text_of(turns: list[RenderedTurn]) -> str:
    return "".join(span.text for turn in turns for part in turn for span in part)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("usual", [" yo\n<|end|>", "b<|end|>"]),
        ("trimmed", ["yo<|end|>", "b<|end|>"]),
        ("no end", ["\nyo<|user|>", "\nb<|user|>"]),  # the last token is not in the text
        ("two ends", ["<|answer|> yo\n<|done|><|end|>", "<|answer|>b<|done|><|end|>"]),
        ("parts", [" yo\n<|end|>", "b<|end|>"]),
        ("strict", [" yo\n<|end|>", "b<|end|>"]),
        ("instruction", ["  yo\n<|end|>", " b<|end|>"]),
        ("dated", [" yo\n<|end|>", "b<|end|>"]),
        ("tools", [" yo\n<|end|>", "b<|end|>"]),
        ("two marks", [" yo\n<|end|>", "b<|end|>"]),
        ("thoughts", [" yo\n<|end|>", "b<|end|>"]),  # the empty block before b belongs to the prompt
        ("asks", [" yo\n<|end|>", "b<|end|>"]),
    ],
)
def test_the_answers_and_their_end_tokens_are_trained(name: str, expected: list[str]) -> None:
    assert trained(template_of(name).render(PLAIN)) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    byte_level_folder(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), **SPECIAL)
    template, draw, rendered = template_of(name), random.Random(name), 0
    for _ in range(200):
        conversation = random_conversation(draw, thoughts=True)
        messages = create_messages(conversation, ("reasoning_content",)).final(MessageForm(parts=name == "parts"))
        tools = [{"type": "function", "function": tool} for tool in conversation.tools] or None
        try:
            turns = template.render(conversation)
        except InvalidRowError:
            continue
        expected = theirs.apply_chat_template(messages, tools, chat_template=TEMPLATES[name], tokenize=False)
        end = "<|tool|>" if conversation.turns[-1].calls else "<|user|>"
        assert text_of(turns) == expected + (end if name == "no end" else "")
        assert len(turns) == len(conversation.turns)
        rendered += 1
        if rendered == 8:
            break
    assert rendered == 8


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_generation_prompt_shows_where_an_answer_begins(name: str) -> None:
    """What a template adds for the next answer precedes the trained text, unless it opens a block of reasoning."""
    template = template_of(name)
    row = template._rendered_row(PLAIN, template._form)
    turns = template.render(PLAIN)
    prompt = row.render(row.messages.final(template._form)[:1], True)
    if name in ("asks", "two marks"):
        return
    assert turns[0].prompt[0].text == prompt


THINKING = Conversation([Turn("q", "<think>\nold\n</think>\n\na"), Turn("r", "<think>\nnew\n</think>\n\nb")])


@pytest.mark.parametrize("as_field", [False, True])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("thoughts", ["a<|end|>", "<think>\nnew\n</think>\n\nb<|end|>"]),
        ("asks", ["a<|end|>", "new\n</think>\n\nb<|end|>"]),  # the prompt contains the opening marker
    ],
)
def test_thoughts_are_trained_where_the_template_writes_them(name: str, expected: list[str], as_field: bool) -> None:
    fields = Conversation([Turn("q", "a", thought="old"), Turn("r", "b", thought="new")])
    assert trained(template_of(name).render(fields if as_field else THINKING)) == expected


def test_an_empty_block_of_reasoning_is_context_unless_thinking_is_enabled() -> None:
    answers = {value: template_of("thoughts", value).render(PLAIN)[-1] for value in (None, True, False)}
    assert trained([answers[None]]) == trained([answers[False]]) == ["b<|end|>"]
    assert trained([answers[True]]) == ["<think>\n\n</think>\n\nb<|end|>"]
    assert answers[None].prompt[-1].text.endswith("<|assistant|>\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("name", ["tools", "thoughts", "asks", "no end"])
def test_calls_are_trained_up_to_the_end_token(name: str) -> None:
    turns = [
        Turn("q", "", calls=(CALL,)),
        Turn("", "wait", "observation", (CALL, CALL)),
        Turn("<|end|>", "done", "observation", replies=("x",)),
        Turn("again", "", calls=(CALL,)),
    ]
    rendered = template_of(name).render(Conversation(turns))
    texts = trained(rendered)
    ends = ("<|user|>", "<|tool|>") if name == "no end" else ("<|end|>", "<|end|>")
    assert all(text.endswith(f"</call>{ends[1]}") for text in (texts[0], texts[1], texts[3]))
    assert texts[1].lstrip().startswith("wait") and texts[1].count("<call>") == 2
    assert texts[2].endswith(f"done{ends[0]}") and "call" not in texts[2]
    assert all(text.count("<call>") == len(turn.calls) for text, turn in zip(texts, turns, strict=True))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("m.content[::-1]", ["\noy <|end|>", "b<|end|>"]),
        ("m.content ~ m.content | length", [" yo\n4<|end|>", "b1<|end|>"]),
        ("m.content if m.role == 'user' else m.content | length", ["4<|end|>", "1<|end|>"]),
        # What later messages change is nothing that a prefix shows.
        ("messages[-1].content", None),
        ("m.content | length + messages | length", None),
    ],
)
def test_changed_answers_are_found_by_prefixes_and_nothing_is_guessed(content: str, expected: list[str] | None) -> None:
    template = JinjaTemplate(USUAL.replace("m.content", content), SPECIAL, None, ["<|end|>"])
    if expected is None:
        with pytest.raises(InvalidRowError, match=ANSWER_NOT_FOUND):
            template.render(PLAIN)
    else:
        assert trained(template.render(PLAIN)) == expected


def test_an_answer_in_two_pieces_is_one_turn() -> None:
    template = JinjaTemplate(TWO_MARKS, SPECIAL)
    first, last = template.render(PLAIN)
    assert [(span.text, span.trained) for span in first.answer] == [
        (" yo\n", True),
        ("<|then|>", False),
        ("<|end|>", True),
    ]
    assert [span.content for span in last.answer] == [(0, 1), (0, 0), (0, 0), (0, 0)]
    # Only one of the answers is marked, in two pieces: two marks, but not one for each answer.
    one = TWO_MARKS.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    first, last = JinjaTemplate(one, SPECIAL).render(PLAIN)
    assert trained([first, last]) == ["", "b<|end|>"]
    untrained = Conversation([Turn("hi", "yo"), Turn("a", "b", trained=False)])
    assert trained(template.render(untrained)) == ["yo<|end|>", ""]


def test_what_a_template_reads_is_passed_on() -> None:
    source = "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{# m.reasoning_content #}"
    handler, _ = create_handler(
        "SharegptStyleInstructionHandler",
        json.dumps(
            {
                "messages": "messages",
                "tags": {
                    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                    "observation_tag": "tool", "system_tag": "system",
                },
            }
        ),
    )  # fmt: skip
    assert handler is not None
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "c2"}], "reasoning_content": "why"},
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c1"},
        {"role": "tool", "content": "2", "name": "f", "tool_call_id": "c2"},
        {"role": "assistant", "content": "a"},
    ]
    plain = handler.conversation({"messages": messages})
    assert handler.pop_unread_fields() == {"name", "tool_call_id"} and plain.turns[0].calls[0].id == ""
    handler.read_sources()
    conversation = handler.conversation({"messages": messages})
    assert not handler.pop_unread_fields()
    assert create_messages(conversation, ("reasoning_content",)).messages == messages
    lines = text_of(JinjaTemplate(source, {}).render(conversation)).splitlines()
    assert [json.loads(line) for line in lines] == messages
    column = handler.conversation({"messages": messages[1:], "system": ""})
    assert create_messages(column, ()).messages[0]["role"] == "user"


def test_noncharacters_are_refused_everywhere() -> None:
    template = template_of("tools")
    for character in NONCHARACTERS:
        bad = f"a{character}b"
        for conversation in (
            Conversation([Turn(bad, "b")]),
            Conversation([Turn("a", bad)]),
            Conversation([Turn("a", "b")], bad),
            Conversation([Turn("a", "b", calls=(FunctionCall(bad, "{}"),))]),
            Conversation([Turn("a", "b", calls=(FunctionCall("f", json.dumps({bad: 1}, ensure_ascii=False)),))]),
            Conversation([Turn("a", "b")], tools=({"name": "f", "description": [{"x": bad}]},)),
        ):
            with pytest.raises(InvalidRowError, match="noncharacter"):
                template.render(conversation)


def test_marks_are_read_back() -> None:
    marked = "x" + mark(" \n你 a ", 12) + mark("b", 3) + mark("", 4)
    found = read_marks(marked)
    assert found.text == "x \n你 a b" and found.starts == {12: 3, 3: 7, 4: 8} and found.ends == {12: 6, 3: 8, 4: 8}
    assert read_marks(mark("b", 3) * 2).starts == {} and read_marks("\x1bplain").text == "\x1bplain"
    assert read_marks(marked[:-1]).text != found.text  # half a mark


def test_a_constant_generation_prompt_gives_the_same_as_rendering_it(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(5)
    conversations = [random_conversation(draw, thoughts=True) for _ in range(60)]

    def answer(template: JinjaTemplate, conversation: Conversation) -> Any:
        try:
            return [turn.answer for turn in template.render(conversation)]
        except InvalidRowError as reason:
            return str(reason)

    for name in ("usual", "trimmed", "no end", "two ends", "thoughts", "asks", "tools"):
        template = template_of(name)
        assert template._finder._headers[0]
        quick = [answer(template, conversation) for conversation in conversations]
        monkeypatch.setattr(AnswerFinder, "_after_constant_header", lambda *_: None)
        assert [answer(template, conversation) for conversation in conversations] == quick
        monkeypatch.undo()
    assert not JinjaTemplate(USUAL.replace("<|assistant|>\n", "{{ messages | length }}"), {})._finder._headers[0]
    assert not JinjaTemplate(USUAL + "x", {})._finder._headers[0]


def test_the_end_token_of_a_template() -> None:
    for name, source in TEMPLATES.items():
        ends = END_TOKENS.get(name, ["<|end|>"])
        expected = {"no end": "<|user|>", "two marks": None}.get(name, "<|end|>")
        assert JinjaTemplate(source, SPECIAL, None, ["</s>", *ends]).end_token == expected
    assert JinjaTemplate(USUAL, SPECIAL, None, []).render(PLAIN)[0].answer[0].text == " yo\n"


def test_templates_refuse_rows_with_their_own_message() -> None:
    with pytest.raises(InvalidRowError, match="refuses it: no system text"):
        template_of("strict").render(Conversation([Turn("a", "b")], "Be brief."))
    with pytest.raises(ConfigError, match="not valid Jinja"):
        JinjaTemplate("{% if %}", {})
    assert ASKS != THOUGHTS


def test_without_a_known_header_an_answer_begins_at_its_text_with_its_white_space() -> None:
    numbered = USUAL.replace("<|{{ m.role }}|>", "<|{{ m.role }}{{ loop.index }}|>")
    row = Conversation([Turn("a", "b"), Turn("hi", "\n yo\n")])
    assert trained(JinjaTemplate(numbered, SPECIAL, None, ["<|end|>"]).render(row))[1] == "\n yo\n<|end|>"
    cut = numbered.replace("{{ m.content }}", "{{ m.content.lstrip('\\n') }}")
    assert trained(JinjaTemplate(cut, SPECIAL, None, ["<|end|>"]).render(row))[1] == " yo\n<|end|>"


def test_several_end_tokens_may_follow_each_other() -> None:
    template = JinjaTemplate(TEMPLATES["two ends"], SPECIAL, None, ["<|end|>", "<|done|>"])
    assert trained(template.render(PLAIN))[1] == "<|answer|>b<|done|><|end|>"
    assert template.end_token == "<|end|>"
