"""Templates written in Jinja against the same templates as training renders them, with transformers' own sandbox."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chat_messages import messages_of, random_conversation, text_of, tools_of
from transformers_jinja import rendered_jinja as rendered

from mindspeed_llm.chat import (
    ChatTemplate,
    Conversation,
    InvalidRowError,
    Turn,
    chat_template_names,
    export_chat_template,
    load_chat_template,
)
from mindspeed_llm.chat.reasoning import History


def check(template: ChatTemplate, conversation: Conversation, jinja: str) -> bool:
    """Compare the whole conversation and its last prompt; False if the template refuses it, which both must do."""
    import jinja2

    messages, tools = messages_of(conversation), tools_of(conversation)
    try:
        expected = text_of(template, conversation)
    except InvalidRowError as reason:
        with pytest.raises(jinja2.TemplateError, match=str(reason)):
            rendered(jinja, messages, tools=tools)
        return False
    assert rendered(jinja, messages, tools=tools) == expected
    thinking = {}
    if template.thoughts and template.thoughts.enabled is None:  # without a thought the prompt holds an empty one
        before = text_of(template, conversation, answered=False)
        thinking = {"enable_thinking": not before.endswith(template.thoughts.empty)}
    prompt = rendered(jinja, messages[:-1], tools=tools, add_generation_prompt=True, **thinking)
    assert prompt == text_of(template, conversation, answered=False)
    return True


@pytest.mark.parametrize("name", chat_template_names())
def test_every_template_gives_the_text_of_training(name: str) -> None:
    compare(load_chat_template(name), 25, seed=name)


@pytest.mark.long
@pytest.mark.parametrize("name", chat_template_names())
def test_every_template_gives_the_text_of_200_conversations(name: str) -> None:
    compare(load_chat_template(name), 200, seed=name + " again")


def compare(template: ChatTemplate, count: int, seed: str) -> None:
    draw = random.Random(seed)
    jinja = export_chat_template(template)
    assert jinja is not None
    conversations = [random_conversation(draw, template.thoughts is not None) for _ in range(count)]
    assert sum(check(template, conversation, jinja) for conversation in conversations) > count / 2


@pytest.mark.parametrize("tool_format", ["default", "qwen", "glm4"])
@pytest.mark.parametrize("enable_thinking", [None, True, False])
def test_options_of_preprocessing_show(tool_format: str, enable_thinking: bool | None) -> None:
    compare(
        load_chat_template("qwen3").with_options(tool_format, enable_thinking), 15, f"{tool_format} {enable_thinking}"
    )


@pytest.mark.parametrize("train_empty", [False, True])
@pytest.mark.parametrize(("history", "enable_thinking"), [("keep", None), ("keep", True), ("drop", False)])
def test_options_for_reasoning_show(history: History, enable_thinking: bool | None, train_empty: bool) -> None:
    template = load_chat_template("qwen3").with_options(None, enable_thinking, history, train_empty)
    compare(template, 25, f"{history} {enable_thinking} {train_empty}")


# Every field at once, in both shapes; the second is MindSpeed-LLM's.
OWN: list[dict[str, Any]] = [
    {
        "name": "mine",
        "prefix": [{"special": "begin"}, "<{{idx}}>"],
        "system": ["[sys {{idx}}] '", {"token": "<|s|>"}, "{{content}}\\", "\n"],
        "user": ["Q{{idx}}: ", "{{content}} ({{idx}})", "\tA:"],
        "observation": [{"token": "<|o|>"}, "{{content}}", {"special": "end"}],
        "assistant": [" ", "{{content}}", "<|end|>\n"],
        "function": ["call {{idx}} {{content}}", {"special": "end"}],
        "after": ["{{idx}}\r\n"],
        "separator": [{"token": "<|sep|>"}, "{{idx}}"],
        "default_system": "It's {{content}}.",
        "end_token": "<|end|>",
        "end_once": True,
        "replies": "\n--\n",
        "call": "{{name}}: {{arguments}} {{other}}",
        "thought": ["<think>\n", "\n</think>\n\n"],
    },
    {
        "name": "mine",
        "format_system": {"slots": ["<<SYS>>{{content}}<</SYS>>"]},
        "format_user": {"slots": [["bos_token"], "[INST] {{content}} [/INST]"]},
        "format_observation": {"slots": ["[RESULT] {{content}} [/RESULT]"]},
        "stop_words": ["<|end|>"],
        "replace_eos": True,
    },
    {"name": "mine", "system_in_user": True, "system": ["({{idx}}{{content}})"], "user": ["U{{idx}} {{content}}"]},
]


@pytest.mark.parametrize("entry", OWN, ids=["all fields", "MindSpeed-LLM", "system in user"])
def test_a_users_own_template(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(entry))
    compare(load_chat_template("mine", str(tmp_path / "mine.json")), 60, "mine")


def test_the_comparison_can_fail() -> None:
    conversation = Conversation([Turn("a", "b"), Turn("c", "d")])
    jinja = export_chat_template(load_chat_template("default"))
    assert check(load_chat_template("default"), conversation, jinja)
    for other in ("empty", "alpaca", "deepseek2"):
        with pytest.raises(AssertionError):
            check(load_chat_template(other), conversation, jinja)


def test_the_assistant_header_needs_a_generation_prompt() -> None:
    question = [{"role": "user", "content": "hi"}]
    headers = {"qwen": "<|im_start|>assistant\n", "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n"}
    headers |= {"gemma": "<start_of_turn>model\n", "glm4": "<|assistant|>", "deepseek3": "<｜Assistant｜>"}
    for name, header in headers.items():
        jinja = export_chat_template(load_chat_template(name))
        asked = rendered(jinja, question, add_generation_prompt=True)
        assert asked == rendered(jinja, question) + header, name
    jinja = export_chat_template(load_chat_template("mistral"))  # nothing shows where its header begins
    assert rendered(jinja, question, add_generation_prompt=True) == rendered(jinja, question)


def test_messages_that_training_does_not_support_are_refused() -> None:
    import jinja2

    jinja = export_chat_template(load_chat_template("qwen"))
    user, answer, tool = ({"role": role, "content": "x"} for role in ("user", "assistant", "tool"))
    for messages in ([user, user], [answer], [user, answer, answer], [user, tool], [user, {"role": "other"}]):
        with pytest.raises(jinja2.TemplateError, match="roles out of order"):
            rendered(jinja, messages)
    with pytest.raises(jinja2.TemplateError, match="to be text"):
        rendered(jinja, [{"role": "user", "content": [{"type": "image"}]}])


def test_reasoning_may_be_in_its_own_field() -> None:
    jinja = export_chat_template(load_chat_template("qwen3"))
    user = {"role": "user", "content": "hi"}
    inside = [user, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nyo"}]
    apart = [user, {"role": "assistant", "content": "yo", "reasoning_content": "why"}]
    assert rendered(jinja, inside) == rendered(jinja, apart)
    silent = export_chat_template(load_chat_template("qwen3").with_options(enable_thinking=False))
    asked = rendered(silent, [user], add_generation_prompt=True)
    assert asked.endswith("<think>\n\n</think>\n\n")
    assert not rendered(jinja, [user], add_generation_prompt=True).endswith("</think>\n\n")
    assert rendered(jinja, [user], add_generation_prompt=True, enable_thinking=False) == asked


def test_a_tokenizers_own_template_is_exported_unchanged() -> None:
    from mindspeed_llm.chat import JinjaTemplate

    source = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert export_chat_template(JinjaTemplate(source, {})) == source
