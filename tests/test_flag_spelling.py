"""Flags with underscores, as other frameworks spell them: --seq_length is --seq-length in every program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from argument_rule_cases import small

from mindspeed_llm.arguments.config_file import with_declared_spelling
from mindspeed_llm.arguments.convert_arguments import parse_convert_arguments
from mindspeed_llm.arguments.dataclass_parser import declared_flags, parse_groups
from mindspeed_llm.arguments.inspect_arguments import parse_inspect_arguments
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_arguments import GROUPS
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.recipe.__main__ import RecipeArguments
from mindspeed_llm.reports.__main__ import ReportArguments
from mindspeed_llm.verify.verify_arguments import parse_verify_arguments

RAW = "--handler-name AlpacaStyleInstructionHandler --max-bad-rows 3 --tool-format qwen"
PREPROCESSING = (
    "--input x --tokenizer-name-or-path t --output-prefix a_b --pack --neat-pack --seq-length=64 --max-bad-rows 3"
)


def problems_of_verify(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_verify_arguments(argv, 1)
    return caught.value.problems


# Program → its parser and a command line.
COMMANDS: dict[str, tuple[Callable[[list[str]], Any], list[str]]] = {
    "pretrain": (lambda argv: asdict(parse_pretrain_arguments(argv, 4)), [*small(), *RAW.split()]),
    "preprocess": (lambda argv: asdict(parse_preprocess_arguments(argv)), PREPROCESSING.split()),
    "inspect": (parse_inspect_arguments, ["a_b", "--tokenizer-name-or-path=t_u", "--pack", "2"]),
    "convert": (
        parse_convert_arguments,
        ["--load-dir", "a_b", "--save-dir", "c", "--lora-r", "4"],
    ),
    "report": (lambda argv: parse_groups(argv, [ReportArguments], "", ""), ["a_b", "--no-picture"]),
    # Without a model the parser reports what is wrong, for flags of its own and of training.
    "verify": (problems_of_verify, [*small(load="w"), "--scratch-dir", "a_b", "--reference-float64", "sometimes"]),
    "recipe": (lambda argv: parse_groups(argv, [RecipeArguments], "", ""), ["a_b.yaml", "--dry-run"]),
}


def underscored(argv: list[str]) -> list[str]:
    """The command line with underscores in the names of its flags."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        words.append((f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name) + equals + value)
    return words


@pytest.mark.parametrize("name", COMMANDS)
def test_underscores_mean_the_same_flags_in_every_program(name: str) -> None:
    parse, argv = COMMANDS[name]
    assert underscored(argv) != argv
    assert parse(underscored(argv)) == parse(argv)


def test_both_spellings_are_one_flag() -> None:
    arguments = parse_pretrain_arguments([*small(), "--micro_batch_size", "1", "--train_iters=7"], 4)
    assert arguments.training.micro_batch_size == 1 and arguments.training.train_iters == 7, "the last value wins"
    rows = parse_preprocess_arguments([*PREPROCESSING.split(), "--input", "y", "--max_bad_rows", "5"]).input
    assert rows.input == ["x", "y"] and rows.max_bad_rows == 5


def test_both_spellings_of_a_flag_replace_the_value_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train-iters: 3\nlr: 2e-5\n")
    argv = small(lr=None, train_iters=None)
    arguments = parse_pretrain_arguments([*argv, "--config", str(file), "--train_iters", "9"], 4)
    assert (arguments.training.train_iters, arguments.training.lr) == (9, 2e-5)


def test_flags_that_are_read_before_the_rest_are_read_in_both_spellings(tmp_path: Path) -> None:
    """--hf-config-path completes the shape of the model before the command line is parsed."""
    with pytest.raises(ConfigError) as caught:
        parse_pretrain_arguments([*small(), "--hf_config_path", str(tmp_path / "missing")], 4)
    assert str(tmp_path / "missing") in str(caught.value)


def test_an_unknown_flag_is_reported_as_it_was_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--seq_lenght is not a flag of this program; did you mean --seq-length\?$"):
        parse_preprocess_arguments([*PREPROCESSING.split(), "--seq_lenght", "8"])


def test_every_declared_flag_has_one_spelling_with_underscores() -> None:
    flags = [flag for group in (*GROUPS, RawDataArguments) for flag in declared_flags(group)]
    for flag in flags:
        for name in flag.names:
            assert with_declared_spelling(underscored([name, f"{name}=a_b"]), flags) == [name, f"{name}=a_b"]
