"""Every template, token for token, against a second and smaller reading of MindSpeed-LLM's fields.

The reference below knows nothing of this project's template files or engine: it takes the entries of
mindspeed_templates.json as facts/templates.md explains them, message by message, and tokenises slot by slot.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from small_tokenizers import CharacterTokenizer
from template_reference import NAMES, TEXTS, TOOL, expected

from mindspeed_llm.chat import ChatTemplate, Conversation, FunctionCall, Turn, load_chat_template
from mindspeed_llm.tokenization import SampleBuilder, Tokenizer, load_tokenizer


@cache
def tokenizers(shared: Path) -> list[Tokenizer]:
    folders = [shared / "assets" / name for name in ("qwen25-tokenizer", "llama2-tokenizer")]
    return [*(load_tokenizer("PretrainedFromHF", str(folder)) for folder in folders), CharacterTokenizer()]


def random_conversations(seed: int, with_tools: bool) -> list[Conversation]:
    draw = random.Random(seed)
    found = []
    for _ in range(12):
        turns = []
        for number in range(draw.randint(1, 4)):
            role = "observation" if number and draw.random() < 0.3 else "user"
            calls = (FunctionCall("look_up", '{"word": "你", "n": [1, 2.5]}'),) if draw.random() < 0.3 else ()
            turns.append(Turn(draw.choice(TEXTS), "" if calls else draw.choice(TEXTS), role, calls))  # type: ignore[arg-type]
        tools = (TOOL,) if with_tools and draw.random() < 0.4 else ()
        found.append(Conversation(turns, draw.choice(["", "Be brief.", "用中文\n"]), tools=tools))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_template_gives_the_tokens_of_its_fields(shared: Path, name: str) -> None:
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    assert sorted(entry["name"] for entry in entries) == NAMES
    (entry,) = [entry for entry in entries if entry["name"] == name]
    template = load_chat_template(name)
    fitting = [one for one in tokenizers(shared) if all(one.token_id(token) is not None for token in template.tokens)]
    assert fitting
    for tokenizer in fitting:
        end = tokenizer.token_id(entry["stop_words"][0]) if entry.get("replace_eos") else tokenizer.eos_id
        assert end is not None
        # GLM's tools have their own format here, and none in MindSpeed-LLM, which reads no other than its default one.
        conversations = random_conversations(1, with_tools=name not in ("glm4", "chatglm3"))
        if name == "chatglm2":  # numbers only what users say there; here every round
            conversations = [
                conversation
                for conversation in conversations
                if all(turn.role == "user" for turn in conversation.turns)
            ]
        batch = SampleBuilder(tokenizer, template, None).build(conversations)
        assert not batch.skipped
        start = 0
        for conversation, length in zip(conversations, batch.lengths.tolist(), strict=True):
            ids, labels = expected(entry, conversation, tokenizer, end)
            assert batch.ids[start : start + length].tolist() == ids, conversation
            assert batch.labels[start : start + length].tolist() == labels, conversation
            start += length


def test_reference_comparison_can_fail(shared: Path) -> None:
    """A template with one field changed is found out."""
    entries = json.loads((shared / "data" / "mindspeed_templates.json").read_text(encoding="utf-8"))
    qwen = next(entry for entry in entries if entry["name"] == "qwen")
    tokenizer = tokenizers(shared)[0]
    template: ChatTemplate = load_chat_template("chatml")
    built = SampleBuilder(tokenizer, template, None)
    (conversation, *_) = [conversation for conversation in random_conversations(1, False) if not conversation.system]
    assert built.build([conversation]).ids.tolist() != expected(qwen, conversation, tokenizer, built.eos_id)[0]
