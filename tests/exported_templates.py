"""Render exported chat templates with transformers' own sandbox, and compare them with what training renders."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chat_messages import BEGIN, END, messages_of, random_conversation, text_of, tools_of

from mindspeed_llm.chat import ChatTemplate, Conversation, InvalidRowError, export_chat_template


def rendered(jinja: str, messages: list[dict[str, Any]], **words: Any) -> str:
    """What apply_chat_template(tokenize=False) gives. Raises jinja2.TemplateError where the template does."""
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": BEGIN, "eos_token": END}
    texts, _ = render_jinja_template([messages], chat_template=jinja, **special, **words)
    return texts[0]


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


def compare(template: ChatTemplate, count: int, seed: str) -> None:
    draw = random.Random(seed)
    jinja = export_chat_template(template)
    assert jinja is not None
    conversations = [random_conversation(draw, template.thoughts is not None) for _ in range(count)]
    assert sum(check(template, conversation, jinja) for conversation in conversations) > count / 2
