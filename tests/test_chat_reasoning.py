"""--reasoning-history and --train-empty-reasoning on random conversations, against an independent reference."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from chat_messages import messages_of, text_of, tools_of
from conversation_reference import Flags, reference
from random_conversations import ConversationGenerator
from small_tokenizers import CharacterTokenizer
from transformers_jinja import rendered_jinja

from mindspeed_llm.chat import (
    ChatTemplate,
    Conversation,
    FunctionCall,
    Turn,
    create_handler,
    export_chat_template,
    load_chat_template,
)
from mindspeed_llm.chat.reasoning import History
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.tokenization import SampleBuilder

HISTORIES: tuple[History | None, ...] = (None, "template", "drop", "keep")
OPTIONS = [
    (thinking, history, empty)
    for thinking, history, empty in itertools.product((None, True, False), HISTORIES, (False, True))
    if not (thinking is False and history == "keep")
]
Labelled = tuple[list[int], list[int]]


def conversations(seed: str, count: int) -> list[Conversation]:
    """Draw conversations; half of the answers have reasoning, in the text or in a field."""
    generator = ConversationGenerator(seed, ["<|im_start|>"], columnar=False)
    drawn: list[Conversation] = []
    while len(drawn) < count:
        one = generator.generate(spoken=True)
        if not one.bad:
            drawn.append(
                replace(one.conversation, turns=[thoughtful(turn, generator) for turn in one.conversation.turns])
            )
    return drawn


def thoughtful(turn: Turn, generator: ConversationGenerator) -> Turn:
    kind, thought = generator.draw.choice(("", "", "field", "text")), generator.draw.choice(("why", "\na\n\nb "))
    if kind == "field":
        return replace(turn, thought=thought)
    return replace(turn, answer=f"<think>\n{thought}\n</think>\n\n{turn.answer}") if kind == "text" else turn


def samples(template: ChatTemplate, drawn: list[Conversation], **options: Any) -> list[Labelled | None]:
    """Return ids and labels of each conversation; None if nothing of it is trained."""
    batch = SampleBuilder(CharacterTokenizer(), template, None, **options).build(drawn)
    skipped = {number for number, _ in batch.skipped}
    ends = iter(itertools.accumulate(batch.lengths.tolist(), initial=0))
    start, found = next(ends), []
    for number in range(len(drawn)):
        if number in skipped:
            found.append(None)
            continue
        end = next(ends)
        found.append((batch.ids[start:end].tolist(), batch.labels[start:end].tolist()))
        start = end
    return found


@pytest.mark.parametrize("mask_history", [False, True])
def test_tokens_and_labels_of_every_combination(mask_history: bool) -> None:
    compare(12, mask_history)


@pytest.mark.long
@pytest.mark.parametrize("mask_history", [False, True])
def test_tokens_and_labels_of_every_combination_at_length(mask_history: bool) -> None:
    compare(400, mask_history)


def compare(count: int, mask_history: bool) -> None:
    tokenizer = CharacterTokenizer()
    end = SampleBuilder(tokenizer, load_chat_template("qwen3"), None).eos_id
    for thinking, history, empty in OPTIONS:
        flags = Flags(False, mask_history, thinking, history, empty)
        drawn = conversations(f"{flags} {count}", count)
        found = samples(
            load_chat_template("qwen3").with_options(None, thinking, history, empty), drawn, mask_history=mask_history
        )
        for conversation, sample in zip(drawn, found, strict=True):
            assert sample == reference({"name": "qwen3"}, conversation, tokenizer, end, flags), (flags, conversation)


def test_the_hash_differs_exactly_if_samples_or_the_exported_template_differ() -> None:
    drawn = conversations("hashes", 12)
    results = defaultdict(set)
    for options in OPTIONS:
        template = load_chat_template("qwen3").with_options(None, *options)
        results[template.sha256].add(json.dumps([samples(template, drawn), export_chat_template(template)]))
    assert all(len(same) == 1 for same in results.values())
    assert len(set.union(*results.values())) == len(results) == 6


# The hashes of the version before these flags: manifests and run identities contain them.
HASHES = {
    ("qwen3", None, None): "3f6179f5",
    ("qwen3", None, True): "ba9a17fe",
    ("qwen3", None, False): "e31d03e7",
    ("qwen3", "glm4", None): "a09a14d6",
    ("qwen3", "glm4", True): "86a28e87",
    ("qwen3", "glm4", False): "fcdfc87c",
}


@pytest.mark.parametrize(("name", "tools", "thinking"), list(HASHES))
def test_hashes_without_the_new_flags_are_unchanged(name: str, tools: str | None, thinking: bool | None) -> None:
    template = load_chat_template(name)
    for history in (None, "template", "drop"):
        changed = template.with_options(tools, thinking, history)  # type: ignore[arg-type]
        assert changed.sha256.startswith(HASHES[name, tools, thinking])
    assert template.with_options(None, None, "drop") is template


def test_further_options_keep_those_for_reasoning() -> None:
    template = load_chat_template("qwen3").with_options(None, None, "keep", True)
    assert template.with_options("glm4").thoughts == template.thoughts


@pytest.mark.parametrize("thinking", [None, True])
def test_kept_reasoning_makes_every_shorter_conversation_a_prefix(thinking: bool | None) -> None:
    """What the model read and generated is what it reads as history afterwards."""
    template = load_chat_template("qwen3").with_options(None, thinking, "keep")
    for conversation in conversations(f"prefix {thinking}", 25):
        whole = text_of(template, conversation)
        for length in range(1, len(conversation.turns)):
            assert whole.startswith(text_of(template, replace(conversation, turns=conversation.turns[:length])))


def test_the_exported_template_prompts_with_the_text_before_each_answer() -> None:
    template = load_chat_template("qwen3").with_options(None, None, "keep")
    jinja = export_chat_template(template)
    assert jinja is not None
    for conversation in conversations("prompts", 15):
        # The exported template does not compare a field with the text: one place of reasoning for each answer.
        turns = [replace(turn, thought="") if "</think>" in turn.answer else turn for turn in conversation.turns]
        for length in range(1, len(turns) + 1):
            part = replace(conversation, turns=turns[:length])
            before = text_of(template, part, answered=False)
            given = messages_of(part)[:-1]
            words = {"enable_thinking": not before.endswith("<think>\n\n</think>\n\n")}
            shown = rendered_jinja(jinja, given, tools=tools_of(part), add_generation_prompt=True, **words)
            assert shown == before


def test_reasoning_of_marked_answers_is_context() -> None:
    """A mark of the row applies to the reasoning and the empty block of its answer."""
    turns = [Turn("u", "a", thought="x", trained=False), Turn("v", "b", trained=False), Turn("w", "c", thought="z")]
    template = load_chat_template("qwen3").with_options(None, None, "keep", True)
    assert labelled(template, Conversation(turns)) == "<think>\nz\n</think>\n\nc<|im_end|>"
    turns = [replace(turn, trained=True) for turn in turns]
    whole = "<think>\nx\n</think>\n\na<|im_end|><think>\n\n</think>\n\nb<|im_end|><think>\nz\n</think>\n\nc<|im_end|>"
    assert labelled(template, Conversation(turns)) == whole
    assert labelled(template, Conversation(turns), mask_history=True) == "<think>\nz\n</think>\n\nc<|im_end|>"


def labelled(template: ChatTemplate, conversation: Conversation, **options: Any) -> str:
    tokenizer = CharacterTokenizer()
    labels = SampleBuilder(tokenizer, template, None, **options).build([conversation]).labels.tolist()
    return tokenizer.decode([label for label in labels if label != -100])


def test_a_conversation_without_a_user_has_one_current_answer() -> None:
    call = (FunctionCall("f", "{}"),)
    turns = [Turn("1", "", "observation", call, thought="x"), Turn("2", "b", "observation", thought="y")]
    for history, count in (("drop", 1), ("keep", 2)):
        template = load_chat_template("qwen3").with_options(None, None, history)  # type: ignore[arg-type]
        assert text_of(template, Conversation(turns)).count("<think>") == count


def test_rows_reach_the_template_with_their_reasoning() -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    handler, problems = create_handler(
        "SharegptStyleInstructionHandler", json.dumps({"messages": "messages", "tags": tags})
    )
    assert handler is not None, problems
    user, answer = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "reasoning": "x"}
    conversation = handler.conversation({"messages": [user, answer, user, answer]})
    text = labelled(load_chat_template("qwen3").with_options(None, None, "keep"), conversation)
    assert text == "<think>\nx\n</think>\n\na<|im_end|>" * 2


def test_all_flags_that_a_template_cannot_follow_are_listed() -> None:
    with pytest.raises(ConfigError) as error:
        load_chat_template("qwen").with_options(None, None, "keep", True)
    assert [problem.split(" has ")[0] for problem in error.value.problems] == [
        "--reasoning-history: the template qwen",
        "--train-empty-reasoning: the template qwen",
    ]


def test_the_comparison_can_fail() -> None:
    tokenizer, drawn = CharacterTokenizer(), conversations("fail", 25)
    kept = samples(load_chat_template("qwen3").with_options(None, None, "keep"), drawn)
    end = SampleBuilder(tokenizer, load_chat_template("qwen3"), None).eos_id
    for flags in (Flags(), Flags(reasoning_history="keep", train_empty_reasoning=True)):
        assert kept != [reference({"name": "qwen3"}, one, tokenizer, end, flags) for one in drawn]


def test_random_conversations_have_every_kind_of_answer() -> None:
    drawn = conversations("kinds", 60)
    turns = [turn for one in drawn for turn in one.turns]
    assert {(bool(turn.calls), bool(turn.thought), "</think>" in turn.answer) for turn in turns} == set(
        itertools.product((False, True), repeat=3)
    )
    assert any(len(one.turns) > 2 for one in drawn)
