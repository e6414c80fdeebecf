"""--prompt-type hf: a tokenizer's own chat template gives the tokens and the mask that transformers gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import CharacterTokenizer, byte_level_folder

from mindspeed_llm.boundaries import IGNORE_INDEX
from mindspeed_llm.chat import (
    Conversation,
    FunctionCall,
    InvalidRowError,
    JinjaTemplate,
    Span,
    Turn,
    find_templates,
    load_jinja_template,
)
from mindspeed_llm.chat.template_messages import create_messages
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization import SampleBuilder, load_tokenizer
from mindspeed_llm.tokenization.encoded_texts import TokenOffsets
from mindspeed_llm.tokenization.truncation import split_by_spans

SOURCE = """{%- if tools %}
<tools>{{ tools | tojson }}</tools>
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {{- message.content }}
            {%- for call in message.tool_calls %}
                {{- call.function.name }}{{ call.function.arguments | tojson }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}"""
CONVERSATIONS = [
    Conversation([Turn("hi", "yo")]),
    Conversation([Turn("Describe it.", "\n\nThe old harbour 🙂 ")], "Be brief."),
    Conversation(
        [Turn("a", "b"), Turn("c", "", calls=(FunctionCall("f", '{"x": "你"}'),)), Turn("42", "so", "observation")]
    ),
    Conversation([Turn("hi", "yo")], tools=({"name": "f", "parameters": {}},)),
]


def folder_with(folder: Path, **settings: Any) -> Path:
    byte_level_folder(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|im_end|>", **settings}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory.mktemp("hf"), chat_template=SOURCE)


def test_tokens_and_mask_are_those_of_transformers(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", chat_template=SOURCE
    )
    tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
    batch = SampleBuilder(tokenizer, load_jinja_template(str(folder), None), None).build(CONVERSATIONS)
    assert not batch.skipped
    start = 0
    for conversation, length in zip(CONVERSATIONS, batch.lengths.tolist(), strict=True):
        expected = theirs.apply_chat_template(
            create_messages(conversation, ()).messages,
            tools=[{"type": "function", "function": tool} for tool in conversation.tools] or None,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert batch.ids[start : start + length].tolist() == expected["input_ids"]
        mask = (batch.labels[start : start + length] != IGNORE_INDEX).astype(int).tolist()
        assert mask == expected["assistant_masks"] and sum(mask) > 1
        start += length


def test_a_token_across_the_mark_is_trained() -> None:
    class Pairs(CharacterTokenizer):
        """Every two characters are one token."""

        def encode_with_offsets(self, text: str) -> TokenOffsets:
            starts = np.arange(0, len(text), 2)
            return TokenOffsets(starts.astype(np.int32), starts, np.minimum(starts + 2, len(text)))

    def parts(spans: list[Span]) -> list[list[int]]:
        encoded = Pairs().encode_batch_with_offsets(["".join(span.text for span in spans), "xy"])
        ids, sizes = split_by_spans(encoded, [*spans, Span("text", "x"), Span("text", "y", True)], [0, 3, 5])
        parts = [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])]
        assert parts[3:] == [[], [0]]
        return parts[:3]

    # ab cd ef gh
    assert parts([Span("text", "abc"), Span("text", "def", True), Span("text", "gh")]) == [[0], [2, 4], [6]]
    # ab cd eg: the last begins in the answer
    assert parts([Span("text", "abc"), Span("text", "de", True), Span("text", "g")]) == [[0], [2, 4], []]


def test_a_too_long_sample_keeps_its_markers(folder: Path) -> None:
    tokenizer = load_tokenizer("PretrainedFromHF", str(folder))
    template = load_jinja_template(str(folder), None)
    old, long = Turn("older", "gone"), Turn("Describe " * 40, "Yes.")
    whole = SampleBuilder(tokenizer, template, None).build([Conversation([long])])
    built = SampleBuilder(tokenizer, template, 64)
    batch = built.build([Conversation([old, long])])
    assert batch.lengths.tolist() == [64] and batch.truncated == 1
    assert dict(batch.steps) == {"oldest turns left out": 1, "user texts shortened": 1}
    head = whole.ids[:4].tolist()
    assert batch.ids[:4].tolist() == head and batch.ids[-8:].tolist() == whole.ids[-8:].tolist()
    assert (batch.labels[-8:] == whole.labels[-8:]).all()
    cut = SampleBuilder(tokenizer, template, 40).build([Conversation([Turn("Describe", "the harbour " * 40)])])
    assert cut.lengths.tolist() == [40] and int(cut.labels[-1]) not in (IGNORE_INDEX, built.eos_id)


def test_unusable_templates_are_refused(tmp_path: Path) -> None:
    for settings, message in (
        ({}, "contains no chat template"),
        ({"chat_template": "{% generation %}{{ messages"}, "not valid Jinja"),
        ({"chat_template": [{"name": "rag", "template": SOURCE}]}, "no default one"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_jinja_template(str(folder_with(tmp_path, **settings)), None)
    assert load_jinja_template(
        str(folder_with(tmp_path, chat_template=[{"name": "default", "template": SOURCE}])), None
    )
    with pytest.raises(ConfigError, match="needs --tokenizer-name-or-path"):
        load_jinja_template(None, None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if false %}{% generation %}x{% endgeneration %}{% endif %}", "marks no answer of it"),
        ("{% generation %}{{ raise_exception('no!') }}{% endgeneration %}", "refuses it: no!"),
        ("{% generation %}{{ messages[9].content + 1 }}{% endgeneration %}", "the chat template"),
        ("{% generation %}{{ ''.__class__.__mro__[1].__subclasses__() }}{% endgeneration %}", "the chat template"),
        ("{% generation %}{{ messages.append(1) }}{% endgeneration %}", "the chat template"),
    ],
)
def test_rows_that_a_template_cannot_render_are_bad_rows(source: str, reason: str) -> None:
    with pytest.raises(InvalidRowError, match=reason):
        JinjaTemplate(source, {}).render(CONVERSATIONS[0])


ANSWERS = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "conversation", "reason"),
    [
        (ANSWERS, CONVERSATIONS[2], "leaves function calls out"),
        (ANSWERS, Conversation([Turn("hi", "yo")], tools=({"name": "weather", "parameters": {}},)), "leaves tools out"),
        (ANSWERS + "weather", Conversation([Turn("hi", "yo")], tools=({"name": "weather"},)), None),
        (ANSWERS, CONVERSATIONS[0], None),
        ("{{ tools | tojson }}" + ANSWERS, Conversation([Turn("hi", "yo")], tools=({"name": 'a"天'},)), None),
    ],
)
def test_a_row_is_bad_if_the_template_omits_its_tools(
    source: str, conversation: Conversation, reason: str | None
) -> None:
    template = JinjaTemplate(source, {})
    if reason is None:
        assert template.render(conversation)
        return
    with pytest.raises(InvalidRowError, match=reason):
        template.render(conversation)


def test_enable_thinking_reaches_the_template() -> None:
    source = "{% generation %}{{ enable_thinking is defined and enable_thinking }}{% endgeneration %}"
    shown = [
        JinjaTemplate(source, {}, given).render(CONVERSATIONS[0])[0].answer[0].text for given in (None, True, False)
    ]
    assert shown == ["False", "True", "False"]


def test_several_templates_are_found_as_transformers_finds_them(tmp_path: Path) -> None:
    folder_with(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    (tmp_path / "chat_template.jinja").write_text("a")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("b")
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template == find_templates(tmp_path) == {"default": "a", "tool_use": "b"}
