"""The flags for reasoning with a tokenizer's own chat template (--prompt-type hf)."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_messages import messages_of, random_conversation, tools_of
from preprocess_command import Command
from small_tokenizers import byte_level_folder
from transformers_jinja import rendered_jinja

from mindspeed_llm.chat import Conversation, InvalidRowError, JinjaTemplate, Turn, export_chat_template
from mindspeed_llm.chat.jinja_reasoning import KEEPING, JinjaReasoning
from mindspeed_llm.chat.reasoning import History
from mindspeed_llm.chat.renderer import RenderedTurn, Span


def source(shown: str, empty: bool = False) -> str:
    """Return a template that writes reasoning, from the field or the text, where the condition `shown` is true.

    Args:
        empty: whether it writes an empty block where there is no reasoning to write.
    """
    return (
        "{%- set last = namespace(asked=-1, user=false) %}{%- for m in messages %}"
        "{%- if m.role == 'user' or (m.role == 'tool' and not last.user) %}{%- set last.asked = loop.index0 %}"
        "{%- set last.user = last.user or m.role == 'user' %}{%- endif %}{%- endfor %}"
        "{%- for tool in tools or [] %}{{ tool | tojson }}{%- endfor %}"
        "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- '<answer>' }}"
        "{%- set thought, text = m.reasoning_content or '', m.content %}"
        "{%- if not thought and '</think>' in text %}"
        "{%- set thought = text.split('</think>')[0].split('<think>')[-1] %}"
        "{%- set text = text.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        f"{{%- set thought = thought if {shown} else '' %}}"
        + ("{%- if not thought %}{{- '<think>\\n</think>\\n' }}{%- endif %}" if empty else "")
        + "{%- generation %}{%- if thought %}{{- '<think>' ~ thought ~ '</think>' }}{%- endif %}"
        "{{- text }}{%- for call in m.tool_calls or [] %}{{- call | tojson }}{%- endfor %}{{- '</s>' }}"
        "{%- endgeneration %}{%- else %}{{- '<' ~ m.role ~ '>' ~ m.content }}{%- endif %}{%- endfor %}"
    )


CURRENT = "loop.index0 > last.asked"
ALWAYS, PUBLISHED, SWITCHED = source("true"), source(CURRENT), source(f"preserve_thinking is true or {CURRENT}")
CLEARING = source(f"(clear_thinking is defined and not clear_thinking) or {CURRENT}")
TURNS = [Turn("u", "a", thought="x"), Turn("v", "<think>y</think>b"), Turn("w", "c", thought="z")]


def jinja_template(
    source: str,
    special: dict[str, str],
    thinking: bool | None = None,
    history: Any = None,
    train_empty: bool = False,
) -> JinjaTemplate:
    return JinjaTemplate(source, special, thinking, reasoning_history=history, train_empty_reasoning=train_empty)


def texts(template: JinjaTemplate, turns: list[Turn]) -> list[str]:
    """Return the trained text of each answer."""
    rendered = template.render(Conversation(turns))
    return ["".join(span.text for span in turn.answer if span.trained) for turn in rendered]


def whole(template: JinjaTemplate, conversation: Conversation) -> str:
    return "".join(span.text for turn in template.render(conversation) for part in turn for span in part)


@pytest.mark.parametrize("jinja", [ALWAYS, SWITCHED, CLEARING])
def test_keep_sets_the_variable_that_the_template_reads(jinja: str) -> None:
    template = jinja_template(jinja, {}, None, "keep")
    assert texts(template, TURNS) == ["<think>x</think>a</s>", "<think>y</think>b</s>", "<think>z</think>c</s>"]


def test_only_variables_that_the_template_reads_are_set() -> None:
    assert not JinjaReasoning(ALWAYS, "keep").variables and not JinjaReasoning(SWITCHED, "drop").variables
    assert JinjaReasoning(SWITCHED, "keep").variables == {"preserve_thinking": True}
    assert JinjaReasoning(CLEARING, "keep").variables == {"clear_thinking": False}
    assert JinjaReasoning(" ".join(f"{{{{ {name} }}}}" for name in KEEPING), "keep").variables == KEEPING


@pytest.mark.parametrize("turns", [TURNS[:1] + TURNS[2:], TURNS[1:]])
def test_keep_rejects_a_row_whose_reasoning_the_template_leaves_out(turns: list[Turn]) -> None:
    template = jinja_template(PUBLISHED, {}, None, "keep")
    with pytest.raises(InvalidRowError, match="leaves reasoning out"):
        texts(template, turns)
    assert texts(template, turns[1:]) == ["<think>z</think>c</s>"]
    # The words of the thought occur in another text as well.
    with pytest.raises(InvalidRowError, match="leaves reasoning out"):
        texts(template, [replace(turns[0], prompt="x y"), *turns[1:]])


def test_keep_rejects_a_row_if_the_template_reads_no_reasoning() -> None:
    jinja = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert not jinja_template(jinja, {}).has_reasoning
    template = jinja_template(jinja, {}, None, "keep")
    assert template.has_reasoning, "the fields are read, so that the row can be rejected"
    with pytest.raises(InvalidRowError, match="leaves reasoning out"):
        template.render(Conversation([Turn("u", "a", thought="x")]))
    assert template.render(Conversation([Turn("u", "<think>x</think>a")])), "text is written"


@pytest.mark.parametrize("jinja", [ALWAYS, PUBLISHED, SWITCHED])
def test_drop_removes_the_reasoning_of_earlier_answers(jinja: str) -> None:
    template = jinja_template(jinja, {"preserve_thinking": "true"}, None, "drop")
    assert texts(template, TURNS) == ["a</s>", "b</s>", "<think>z</think>c</s>"]


def test_template_and_no_flag_render_as_published() -> None:
    for history in (None, "template"):
        assert texts(jinja_template(ALWAYS, {}, None, history), TURNS)[0] == "<think>x</think>a</s>"  # type: ignore[arg-type]
        assert texts(jinja_template(SWITCHED, {}, None, history), TURNS)[0] == "a</s>"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<|channel>thought", "<channel|>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<think>", "</think>"),
    ],
)
def test_drop_recognises_the_markers_of_the_template(opening: str, closing: str) -> None:
    # A template that writes the content unchanged, and names its markers elsewhere.
    plain = "{% for m in messages %}{% generation %}{{ m.content }}|{% endgeneration %}{% endfor %}"
    jinja = plain + ("" if opening == "<think>" else f"{{# {opening} {closing} #}}")
    turns = [Turn("u", f"{opening}x{closing}\n\na"), Turn("v", f"{opening}y{closing}b")]
    template = jinja_template(jinja, {}, None, "drop")
    assert whole(template, Conversation(turns)) == f"u|a|v|{opening}y{closing}b|"
    assert template.reasoning_markers == (opening, closing) and jinja_template(jinja, {}).reasoning_markers == ()


def test_a_tool_call_after_the_last_question_keeps_its_reasoning() -> None:
    turns = [TURNS[0], Turn("v", "b", thought="y"), Turn("42", "c", "observation")]
    assert texts(jinja_template(ALWAYS, {}, None, "drop"), turns) == ["a</s>", "<think>y</think>b</s>", "c</s>"]


def test_without_a_user_the_last_reply_of_a_tool_is_the_question() -> None:
    template = jinja_template(ALWAYS, {}, None, "drop")
    turns = [Turn("1", "a", "observation", thought="x"), Turn("2", "b", "observation", thought="y")]
    exported, messages = export_chat_template(template), messages_of(Conversation(turns))
    assert exported is not None
    assert rendered_jinja(exported, messages) == whole(template, Conversation(turns))
    assert rendered_jinja(exported, messages[:-1]) == "<tool>1<answer>a</s><tool>2"


def test_an_inserted_empty_block_is_trained_if_asked_for() -> None:
    jinja = source("true", empty=True)
    turns = [Turn("u", "a"), Turn("v<think>\n</think>\n", "b", trained=False), Turn("w", "c", thought="z")]
    block = "<think>\n</think>\n"
    context, trained = jinja_template(jinja, {}), jinja_template(jinja, {}, None, None, True)
    assert texts(context, turns) == ["a</s>", "", "<think>z</think>c</s>"]
    assert texts(trained, turns) == [f"{block}a</s>", "", "<think>z</think>c</s>"]
    assert whole(context, Conversation(turns)) == whole(trained, Conversation(turns))
    assert trained.render(Conversation(turns))[1].answer[0] == Span("text", block, untrainable=True)


def test_text_of_a_prompt_is_no_inserted_block() -> None:
    reasoning = JinjaReasoning("", None, True)
    answer = [Span("text", "a", True)]
    said = RenderedTurn([Span("text", "<user><think></think>", content=(6, 21))], answer)
    inserted = RenderedTurn([Span("text", "<user>hi<think></think>", content=(6, 8))], answer)
    alone = RenderedTurn([Span("text", "<think></think>")], answer)
    block = Span("text", "<think></think>", True)
    assert reasoning.finish([said, inserted, alone]) == [
        said,
        RenderedTurn([Span("text", "<user>hi", content=(6, 8))], [block, *answer]),
        RenderedTurn([], [block, *answer]),
    ]


def test_the_hash_differs_only_if_samples_can_differ() -> None:
    def hashed(*options: Any) -> str:
        return jinja_template(PUBLISHED, {}, *options).sha256

    assert hashed() == hashed(None, "template") == hashed(None, None, False)
    different = [(), (True,), (False,), (None, "keep"), (None, "drop"), (None, None, True), (None, "keep", True)]
    assert len({hashed(*options) for options in different}) == len(different)


@pytest.mark.parametrize("history", [None, "template", "keep", "drop"])
@pytest.mark.parametrize("jinja", [ALWAYS, SWITCHED, "  \n" + ALWAYS], ids=["always", "switched", "space first"])
def test_the_exported_template_writes_what_training_saw(jinja: str, history: History | None) -> None:
    template = jinja_template(jinja, {"bos_token": "<begin>", "eos_token": "<end>"}, None, history)
    exported = export_chat_template(template)
    assert exported is not None and (exported == jinja) == (
        history in (None, "template") or (history == "keep" and jinja is not SWITCHED)
    )
    draw, compared = random.Random(f"{history} {jinja[:9]}"), 0
    for _ in range(25):
        conversation = replace(random_conversation(draw, thoughts=True), no_tools=False)
        try:
            expected = whole(template, conversation)
        except InvalidRowError as reason:  # a thought of white space alone
            assert "leaves reasoning out" not in str(reason)
            continue
        compared += 1
        assert rendered_jinja(exported, messages_of(conversation), tools=tools_of(conversation)) == expected
    assert compared > 15


def test_a_caller_may_set_the_variable_of_an_exported_template() -> None:
    exported = export_chat_template(jinja_template(SWITCHED, {}, None, "keep"))
    assert exported is not None
    messages = messages_of(Conversation(TURNS))
    assert rendered_jinja(exported, messages).count("<think>") == 3
    assert rendered_jinja(exported, messages, preserve_thinking=False).count("<think>") == 1


def test_the_command_applies_the_flags(tmp_path: Path) -> None:
    folder = byte_level_folder(tmp_path / "tokenizer", "</s>")
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": PUBLISHED}))
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "reasoning": "x"}
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"messages": messages}) + "\n" for messages in ([user, answer], [user, answer] * 2))
    )
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    keys = json.dumps({"messages": "messages", "tags": tags})
    command = Command(tmp_path, folder)
    command.flags |= {"--input": str(tmp_path / "rows.jsonl"), "--prompt-type": "hf", "--map-keys": keys}
    command.flags["--handler-name"] = "SharegptStyleInstructionHandler"
    dropped = command.run("--reasoning-history", "drop")
    assert dropped.counts.kept == 2 and dropped.template is not None and dropped.template.jinja is not None
    assert dropped.template.jinja.endswith(PUBLISHED) and dropped.template.jinja != PUBLISHED
    kept = command.run("--reasoning-history", "keep")
    assert kept.counts.skipped == {"the chat template leaves reasoning out, which --reasoning-history keep keeps": 1}
