"""--reasoning-history and --train-empty-reasoning: what is written and what is trained, as docs/reasoning.md says."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported_templates import compare

from mindspeed_llm.chat import (
    ChatTemplate,
    Conversation,
    FunctionCall,
    InvalidRowError,
    JinjaTemplate,
    ReasoningOptions,
    RenderedTurn,
    Turn,
    load_chat_template,
)
from mindspeed_llm.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "reasoning.md"
EMPTY = "<think>\n\n</think>\n\n"
NOT_WRITTEN, TRAINED, CONTEXT = "–", "trained", "context"


def table() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def template(history: str | None, thinking: str, train_empty: str) -> ChatTemplate:
    enabled = {"unset": None, "true": True, "false": False}[thinking]
    options = ReasoningOptions(history, train_empty == "yes")  # type: ignore[arg-type]
    return load_chat_template("qwen3").with_options(None, enabled, options)


def state(turn: RenderedTurn, text: str) -> str:
    """Whether `text` is in a turn, and whether it is trained there."""
    for spans in turn:
        for span in spans:
            if text in span.text:
                return TRAINED if span.trained else CONTEXT
    return NOT_WRITTEN


def conversation(last: str, in_field: bool) -> Conversation:
    def answered(question: str, thought: str, answer: str, role: str = "user", **more: object) -> Turn:
        if in_field:
            return Turn(question, answer, role, thought=thought, **more)  # type: ignore[arg-type]
        return Turn(question, f"<think>{thought}</think>{answer}" if thought else answer, role, **more)  # type: ignore[arg-type]

    calls = (FunctionCall("look_up", "{}"),)
    return Conversation(
        [
            answered("First?", "early", "One."),
            answered("Second?", "middle", "", calls=calls),
            answered("found", last, "Two.", "observation"),
        ]
    )


@pytest.mark.parametrize("row", table(), ids=" ".join)
@pytest.mark.parametrize("in_field", [False, True])
def test_each_row_of_the_table(row: list[str], in_field: bool) -> None:
    options, expected = row[:3], row[3:]
    used = template(*options)
    first, call, last = used.render(conversation("late", in_field))
    _, _, without = used.render(conversation("", in_field))
    written = [state(first, "early"), state(call, "middle"), state(last, "late"), state(without, EMPTY)]
    assert written == expected
    # A block is never empty and filled at once, and only the last answer has an empty one.
    assert (state(last, EMPTY) == NOT_WRITTEN) == (state(last, "late") != NOT_WRITTEN)
    assert state(first, EMPTY) == state(call, EMPTY) == NOT_WRITTEN


def test_the_table_has_every_combination() -> None:
    assert len({tuple(row[:3]) for row in table()}) == 16 == 3 * 3 * 2 - 2


def test_an_option_that_changes_nothing_does_not_change_the_hash() -> None:
    qwen3 = load_chat_template("qwen3")
    assert template(None, "unset", "no").sha256 == template("template", "unset", "no").sha256 == qwen3.sha256
    assert template("template", "true", "yes").sha256 == qwen3.with_options(None, True).sha256
    assert template("drop", "false", "no").sha256 == qwen3.with_options(None, False).sha256
    different = [
        template(history, thinking, empty).sha256
        for history in ("template", "keep", "drop")
        for thinking, empty in (("unset", "no"), ("unset", "yes"), ("true", "no"))
    ]
    assert len({*different, template("template", "false", "no").sha256, template("drop", "false", "yes").sha256}) == 11


def test_options_need_reasoning() -> None:
    with pytest.raises(ConfigError) as caught:
        load_chat_template("qwen").with_options(reasoning=ReasoningOptions("keep", True))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--reasoning-history", "--train-empty-reasoning",
    ]  # fmt: skip


@pytest.mark.parametrize("row", [row for row in table() if row[:3] != ["template", "unset", "no"]], ids=" ".join)
def test_the_exported_template_writes_what_training_saw(row: list[str]) -> None:
    compare(template(*row[:3]), 8, " ".join(row[:3]))


# The reasoning of a field is written in the answers after the last question, or in all; a block before the last answer.
JINJA = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages if m.role == 'user' %}{%- set ns.last = loop.index %}"
    "{%- endfor %}{%- set seen = namespace(users=0) %}"
    "{%- for m in messages %}"
    "{%- if m.role == 'assistant' %}<|a|>"
    "{%- if m.reasoning_content and (preserve_thinking or seen.users == ns.last) %}"
    "<think>{{ m.reasoning_content }}</think>"
    "{%- elif loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{{- m.content }}<|end|>"
    "{%- else %}{%- if m.role == 'user' %}{%- set seen.users = seen.users + 1 %}{%- endif %}<|u|>{{ m.content }}<|end|>"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}<|a|>{%- endif %}"
)


def jinja(*options: object, source: str = JINJA) -> JinjaTemplate:
    return JinjaTemplate(source, {}, ends=["<|end|>"], reasoning=ReasoningOptions(*options))  # type: ignore[arg-type]


def test_the_reasoning_of_a_template_in_jinja() -> None:
    thoughts = Conversation([Turn("a?", "One.", thought="early"), Turn("b?", "Two.", thought="late")])
    first, last = jinja().render(thoughts)
    assert state(first, "early") == NOT_WRITTEN and state(last, "late") == TRAINED
    first, last = jinja("keep").render(thoughts)
    assert state(first, "early") == state(last, "late") == TRAINED
    silent = JINJA.replace("preserve_thinking", "keep_it")
    with pytest.raises(InvalidRowError, match="leaves reasoning out"):
        jinja("keep", source=silent).render(thoughts)
    first, last = jinja("drop", source=JINJA.replace("preserve_thinking", "true")).render(thoughts)
    assert state(first, "early") == NOT_WRITTEN and state(last, "late") == TRAINED


def test_the_empty_block_of_a_template_in_jinja() -> None:
    plain = Conversation([Turn("a?", "One."), Turn("b?", "Two.")])
    assert state(jinja().render(plain)[-1], EMPTY) == CONTEXT
    assert state(jinja(None, True).render(plain)[-1], EMPTY) == TRAINED
    hashes = {jinja(*options).sha256 for options in ((), ("keep",), ("drop",), (None, True))}
    assert len(hashes) == 4 and jinja("template").sha256 == jinja().sha256


def test_a_template_in_jinja_without_reasoning_has_no_options() -> None:
    with pytest.raises(ConfigError, match="has no reasoning; omit --reasoning-history"):
        jinja("drop", source="{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
