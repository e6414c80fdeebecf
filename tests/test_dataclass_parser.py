"""Command line → dataclasses: every kind of flag, and all faults together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_llm.arguments.dataclass_parser import declared_flags, field_docstrings, parse_groups, parse_known_groups
from mindspeed_llm.errors import ConfigError


@dataclass
class Packing:
    """Packing.

    What follows the first line is not the title.
    """

    seq_length: int
    """Slots of a pack; 100 % of
    them."""
    kind: Literal["mmap", "lazy"] = field(default="mmap", metadata={"not_built": ("cached",)})
    """How the file is held."""
    neat_pack: bool = False
    """Number the samples."""
    shuffle: bool = True
    """Mix the packs."""
    fused: bool = field(default=True, metadata={"negated": "--no-fused"})
    """Fused kernel."""
    thinking: bool | None = None
    level: Literal[1, 2] = 1
    lr: float | None = None
    """Learning rate."""


@dataclass
class Files:
    """Files."""

    input: list[str] = field(metadata={"flags": ("-i",), "extend": True})
    """Files to read."""
    weights: list[float] = field(default_factory=list)
    backend: str = field(default="a", metadata={"choices": ("a", "b"), "metavar": "NAME"})
    verb: str = field(default="pack", metadata={"positional": True})


def parse(line: str) -> tuple[Packing, Files]:
    packing, files = parse_groups(line.split(), [Packing, Files], "prog", "What it does.")
    return packing, files


def problems_of(line: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(line)
    return caught.value.problems


def test_defaults() -> None:
    assert parse("--seq-length 8 --input x") == (Packing(8), Files(["x"]))


def test_every_form() -> None:
    packing, files = parse(
        "inspect --seq-length=8 --kind lazy --neat-pack --shuffle false --no-fused --thinking true --level 2 --lr -0.5 "
        "-i a b --input c --weights 1 2.5 --backend b"
    )
    assert packing == Packing(8, "lazy", True, False, False, True, 2, -0.5)
    assert files == Files(["a", "b", "c"], [1.0, 2.5], "b", "inspect")


def test_an_argument_that_begins_as_a_negative_number_is_a_value() -> None:
    """argparse takes -1e-4 and -1,2,3 for flags."""
    assert parse("--seq-length 8 --input x --lr -1e-4")[0].lr == -1e-4
    assert problems_of("--seq-length -1,2 --input x --lr -.5e") == [
        "--seq-length -1,2: not a whole number",
        "--lr -.5e: not a number",
    ]


def test_the_last_value_wins_and_a_bare_true_flag_is_true() -> None:
    packing, files = parse("--seq-length 8 --seq-length 9 --shuffle --weights 1 --weights 2 3 --input x")
    assert (packing.seq_length, packing.shuffle, files.weights) == (9, True, [2.0, 3.0])


def test_all_problems_are_reported_in_one_error() -> None:
    problems = problems_of(
        "--seq-lenth 8 --kind mapp --neat-pack=1 --lr fast --level 3 --weights 1 x --backend --bogus 5 --thinking maybe"
    )
    assert problems == [
        "--seq-lenth is not a flag of this program; did you mean --seq-length?",
        "--neat-pack takes no value; write --neat-pack alone, or leave it out",
        "--bogus is not a flag of this program; --help lists them",
        "--kind mapp: not one of mmap, lazy; did you mean mmap?",
        "--thinking maybe: not true or false",
        "--level 3: not one of 1, 2",
        "--lr fast: not a number",
        "--input is required",
        "--weights x: not a number",
        "--backend needs a value: one of a, b",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("--seq-length 8.5 --input x", "--seq-length 8.5: not a whole number"),
        ("--seq-length --input x", "--seq-length needs a value"),
        ("--seq-length= --input x", "--seq-length needs a value"),
        ("--seq-length 8 --input", "--input needs a value"),
        ("--input x", "--seq-length is required"),
        ("--seq-length 8 --input x --lr nan", "--lr nan: not a finite number"),
        ("--seq-length 8 --input x --lr inf", "--lr inf: not a finite number"),
        ("--seq-lenght 8 --input x", "--seq-lenght is not a flag of this program; did you mean --seq-length?"),
        ("--seq 8 --seq-length 8 --input x", "--seq is not a flag of this program"),
        ("--seq-length 8 --input x --kind cached", "--kind cached: not supported yet; supported: mmap, lazy"),
        ("--seq-length 8 --input x --level 1 stray", "'stray' belongs to no flag"),
    ],
)
def test_one_problem_is_one_line(line: str, problem: str) -> None:
    argv = ["pack", *line.split()]
    problems = problems_of(" ".join(argv))
    assert len(problems) == 1 and problems[0].startswith(problem), problems


def test_flags_with_a_placeholder_value_are_named() -> None:
    parsed = parse_known_groups(["--seq-lenth", "8", "--lr", "x", "--neat-pack"], [Packing], "prog", "")
    assert parsed.invalid_flags == {"--seq-length", "--lr"}
    assert parsed.groups == [Packing(1, neat_pack=True)]
    assert parsed.given == {"--lr", "--neat-pack"}


def test_a_refusal_has_its_own_message() -> None:
    parsed = parse_known_groups(
        ["--seq-length", "8", "--lora-r", "4"], [Packing], "prog", "", lambda name: f"{name}: no"
    )
    assert parsed.problems == ["--lora-r: no"]


def test_help_names_every_flag_with_its_text_and_ends_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_groups(["--wrong", "--help"], [Packing, Files], "prog", "What it does.")
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    assert "What it does. Packing: --seq-length N Slots of a pack; 100 % of them. (required)" in text
    assert "--kind {mmap,lazy} How the file is held. (default: mmap)" in text
    assert "--shuffle {true,false} Mix the packs. (default: true)" in text
    assert "--no-fused" in text and "--input TEXT [TEXT ...], -i" in text and "--backend NAME" in text
    assert "What follows" not in text


def test_help_texts_are_those_under_the_fields() -> None:
    assert field_docstrings(Packing)["neat_pack"] == "Number the samples."
    assert "thinking" not in field_docstrings(Packing)


def test_flags_of_a_subclass_come_with_those_of_its_base() -> None:
    @dataclass
    class More(Packing):
        """More."""

        extra: int = 0
        """Extra."""

    assert [flag.name for flag in declared_flags(More)][-1] == "--extra"
    assert (
        field_docstrings(More)["seq_length"] == "Slots of a pack; 100 % of them."
        and field_docstrings(More)["extra"] == "Extra."
    )


@given(st.lists(st.text(alphabet="-=ab1 .seq-length", max_size=12).filter(lambda word: word not in ("-h", "--help"))))
def test_arbitrary_arguments_are_parsed_or_reported(words: list[str]) -> None:
    try:
        parse_groups(words, [Packing, Files], "prog", "")
    except ConfigError as error:
        assert error.problems and all(error.problems)
