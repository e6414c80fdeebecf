"""The tables of docs/reasoning.md: every cell is rendered with the templates of this project."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers_jinja import rendered_jinja

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.chat import (
    ChatTemplate,
    Conversation,
    FunctionCall,
    Turn,
    chat_template_names,
    export_chat_template,
    load_chat_template,
)
from mindspeed_llm.chat.chat_template import parse_template
from mindspeed_llm.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "reasoning.md"
CALL = (FunctionCall("look_up", "{}"),)
VALUES = {"unset": None, "no": False, "yes": True, "false": False, "true": True}
WRITTEN = re.compile(r"(?P<thought><think>\nwhy\n</think>\n\n)?(?P<empty><think>\n\n</think>\n\n)?(Yo|<tool_call>)")
BASE = ["--input", "x", "--handler-name", "AlpacaStyleInstructionHandler", "--tokenizer-name-or-path", "x"]


class TableRow(NamedTuple):
    """One row of a table: the flags, and the cells of each kind of answer and of the generation prompt."""

    options: list[dict[str, Any]]
    answers: list[str]
    prompt: str


def tables() -> dict[str, list[TableRow]]:
    """Return the rows of the table under each heading that is the name of a template."""
    found: dict[str, list[TableRow]] = {}
    name = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            name = line[4:] if line.startswith("### ") else ""
        elif name and line.startswith("|") and not line.startswith(("| `--", "|---")):
            history, thinking, empty, *answers, prompt = (cell.strip() for cell in line.strip("|").split("|"))
            choices = itertools.product(*(cell.split(", ") for cell in (history, thinking, empty)))
            options = [
                {
                    "reasoning_history": VALUES.get(one[0], one[0]),
                    "enable_thinking": VALUES[one[1]],
                    "train_empty_reasoning": VALUES[one[2]],
                }
                for one in choices
            ]
            found.setdefault(name, []).append(TableRow(options, [cell.strip("`") for cell in answers], prompt))
    return found


def with_thought(turn: Turn, in_field: bool) -> Turn:
    if in_field:
        turn.thought = "why"
    else:
        turn.answer = f"<think>why</think>{turn.answer}"
    return turn


def conversations(in_field: bool) -> list[Conversation]:
    """Return one conversation with reasoning in every answer, and one without any."""
    made = []
    for thinking in (True, False):
        turns = [
            Turn("first", "Yo"),
            Turn("second", "", calls=CALL),
            Turn("42", "Yo", "observation"),
        ]
        made.append(Conversation([with_thought(turn, in_field) for turn in turns] if thinking else turns))
    return made


def cell(template: ChatTemplate, conversation: Conversation, number: int) -> str:
    """Describe what is written for the answer of a turn, in the notation of the page."""
    turn = template.render(conversation)[number]
    # Only the part of the prompt after the header of the answer.
    context = "".join(span.text for span in turn.prompt).rpartition("assistant\n")[2]
    answer = "".join(span.text for span in turn.answer)
    assert all(span.trained for span in turn.answer if span.text.strip() or span.kind == "end")
    assert context in ("", template.thoughts.empty if template.thoughts else "")
    match = WRITTEN.match(answer)
    assert match is not None, answer
    parts = ["(e)" if context else "", "t" if match["thought"] else "", "e" if match["empty"] else "", "a"]
    return " ".join(part for part in parts if part)


def test_every_template_with_reasoning_has_a_table() -> None:
    assert list(tables()) == [name for name in chat_template_names() if load_chat_template(name).has_reasoning]


def test_the_table_has_every_combination_once() -> None:
    for rows in tables().values():
        listed = [tuple(options.values()) for row in rows for options in row.options]
        histories = (None, "template", "drop", "keep")
        assert sorted(map(str, listed)) == sorted(
            map(str, itertools.product(histories, (None, True, False), (False, True)))
        )


@pytest.mark.parametrize("in_field", [False, True])
@pytest.mark.parametrize("name", list(tables()))
def test_every_cell_is_what_is_written(name: str, in_field: bool) -> None:
    thinking, plain = conversations(in_field)
    for row in tables()[name]:
        if row.prompt == "refused":
            continue
        for options in row.options:
            template = load_chat_template(name).with_options(**options)
            found = [cell(template, one, number) for number in range(3) for one in (thinking, plain)]
            assert found == row.answers, options


def test_a_template_with_other_markers_follows_the_same_table() -> None:
    mine = parse_template(
        {
            "name": "mine",
            "user": ["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"],
            "thought": ["[R]", "[/R]"],
        }
    )
    conversation = Conversation([Turn("u", "[R]x[/R]a"), Turn("v", "b", thought="y"), Turn("w", "c")])
    answers = {"keep": ["[R]x[/R]a", "[R]y[/R]b", "[R][/R]c"], "drop": ["a", "b", "[R][/R]c"]}
    for history, expected in answers.items():
        turns = mine.with_options(None, True, history).render(conversation)  # type: ignore[arg-type]
        assert ["".join(span.text for span in turn.answer) for turn in turns] == expected


def flags(options: dict[str, Any]) -> list[str]:
    words = ["--train-empty-reasoning"] if options["train_empty_reasoning"] else []
    if options["reasoning_history"] is not None:
        words += ["--reasoning-history", options["reasoning_history"]]
    if options["enable_thinking"] is not None:
        words += ["--enable-thinking", str(options["enable_thinking"]).lower()]
    return words


def test_exactly_the_combinations_that_the_table_refuses_are_refused() -> None:
    for rows in tables().values():
        for row in rows:
            assert (row.prompt == "refused") == (set(row.answers) == {"refused"})
            for options in row.options:
                words = [*BASE, "--output-prefix", "x/y", "--prompt-type", "qwen3", *flags(options)]
                if row.prompt != "refused":
                    parse_preprocess_arguments(words)
                    continue
                with pytest.raises(ConfigError, match="leave one of them out") as error:
                    parse_preprocess_arguments(words)
                assert len(error.value.problems) == 1


@pytest.mark.parametrize("name", list(tables()))
def test_generation_prompts_of_the_exported_template_are_those_of_the_table(name: str) -> None:
    question = [{"role": "user", "content": "hi"}]
    for row in tables()[name]:
        if row.prompt == "refused":
            continue
        for options in row.options:
            template = load_chat_template(name).with_options(**options)
            jinja = export_chat_template(template)
            assert template.thoughts is not None and jinja is not None
            ends = {
                thinking: rendered_jinja(jinja, question, add_generation_prompt=True, **thinking_words).endswith(
                    template.thoughts.empty
                )
                for thinking, thinking_words in (
                    ("unset", {}),
                    ("on", {"enable_thinking": True}),
                    ("off", {"enable_thinking": False}),
                )
            }
            assert ends == {"unset": row.prompt == "`(e)`", "on": False, "off": True}, options


def test_templates_without_reasoning_refuse_every_flag() -> None:
    for name in sorted(set(chat_template_names()) - set(tables())):
        with pytest.raises(ConfigError) as error:
            load_chat_template(name).with_options(None, True, "drop", True)
        assert [problem.split(":")[0] for problem in error.value.problems] == [
            "--enable-thinking",
            "--reasoning-history",
            "--train-empty-reasoning",
        ]
