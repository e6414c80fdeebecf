"""qwen2.5 against Qwen2.5's published chat template as transformers renders it; qwen stays MindSpeed-LLM's."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chat_messages import messages_of, random_conversation, text_of, tools_of

from mindspeed_llm.chat import Conversation, Turn, load_chat_template

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
# The text of the published template, which is part of what the model has learned; the statements are this test's own.
PUBLISHED = (
    "{%- set first = messages[0] %}"
    "{%- set system = first.content if first.role == 'system' else '" + SYSTEM + "' %}"
    "{{- '<|im_start|>system\\n' ~ system }}"
    "{%- if tools %}"
    "{{- '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}"
    "{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' ~ tool|tojson }}{%- endfor %}"
    "{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}"
    "{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}"
    '{{- \'{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>\' }}'
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- for m in (messages[1:] if first.role == 'system' else messages) %}"
    "{%- if m.role == 'tool' %}"
    "{{- '<|im_start|>user' if loop.previtem is not defined or loop.previtem.role != 'tool' else '' }}"
    "{{- '\\n<tool_response>\\n' ~ m.content ~ '\\n</tool_response>' }}"
    "{{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' else '' }}"
    "{%- elif m.tool_calls %}"
    "{{- '<|im_start|>' ~ m.role ~ ('\\n' ~ m.content if m.content else '') }}"
    "{%- for call in m.tool_calls %}"
    '{{- \'\\n<tool_call>\\n{"name": "\' ~ call.function.name ~ \'", "arguments": \' }}'
    "{{- call.function.arguments|tojson ~ '}\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)


def published(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **words: Any) -> str:
    """What apply_chat_template(tokenize=False) gives."""
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    texts, _ = utils.render_jinja_template([messages], chat_template=PUBLISHED, tools=tools, **words)
    return texts[0]


def test_random_conversations_are_written_as_published() -> None:
    draw, template = random.Random(25), load_chat_template("qwen2.5")
    with_tools = 0
    for _ in range(600):
        conversation = random_conversation(draw)
        conversation.no_tools = False
        assert text_of(template, conversation) == published(messages_of(conversation), tools_of(conversation))
        asked = messages_of(conversation)[:-1]
        assert text_of(template, conversation, answered=False) == published(
            asked, tools_of(conversation), add_generation_prompt=True
        )
        with_tools += any(turn.calls for turn in conversation.turns)
    assert with_tools > 200


def test_answers_alone_are_trained() -> None:
    turns = load_chat_template("qwen2.5").render(Conversation([Turn("hi", "yo"), Turn("42", "so", "observation")]))
    trained = [span.text or span.kind for turn in turns for part in turn for span in part if span.trained]
    assert trained == ["yo", "end", "so", "end"]


def test_qwen_is_still_that_of_mindspeed_llm() -> None:
    template = load_chat_template("qwen")
    assert template.default_system == "You are a helpful assistant."
    text = text_of(template, Conversation([Turn("hi", "yo"), Turn("42", "so", "observation")]))
    assert "<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n" in text
