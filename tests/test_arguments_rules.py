"""Rules between flags are data: each names the flags that decide about it, and is left out where one is at fault."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
from argument_rule_cases import ALLOWED, BROKEN, small
from preprocess_command import ALPACA

from mindspeed_llm.arguments import inspect_arguments, preprocess_arguments, pretrain_arguments, pretrain_parser
from mindspeed_llm.arguments.dataclass_parser import declared_flags, parse_known_groups
from mindspeed_llm.arguments.preprocess_arguments import PreprocessArguments
from mindspeed_llm.arguments.pretrain_arguments import PretrainArguments
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.arguments.rule import Rule, violated_rules

ROWS = f"--input x --output-prefix y --tokenizer-name-or-path t --handler-name {ALPACA} --prompt-type qwen"
PREPROCESS_LINES = [
    ROWS,
    f"{ROWS} --merge-group-keys a",
    f"{ROWS} --input x z --merge-group-keys a",
    "--input x --output-prefix y/",
    "--input x --output-prefix y --handler-name A --tokenizer-type GPTSentencePieceTokenizer",
    f"{ROWS} --pack --neat-pack --seq-length 8 --pad-to-multiple-of 3 --strict --max-bad-rows 1",
    f"{ROWS} --neat-pack --pad-to-multiple-of 8 --overlong drop --train-on-prompt --mask-history --ray-address a",
    f"{ROWS} --mix-strategy interleave_over --interleave-probs 0.5,0.5 --json-keys a b",
    f"{ROWS} --mix-strategy interleave_over --interleave-probs 2",
    f"{ROWS} --interleave-probs x --handler-name GeneralPretrainHandler --tool-format qwen",
]


def spied(group: Any, read: set[str]) -> Any:
    """A copy of a group that notes the flag of every field that is read, by its own methods too."""
    flags = {flag.field.name: flag.name for flag in declared_flags(type(group))}

    class Spy(type(group)):  # type: ignore[misc]
        def __getattribute__(self, name: str) -> Any:
            if name in flags:
                read.add(flags[name])
            return super().__getattribute__(name)

    return Spy(**{one.name: getattr(group, one.name) for one in fields(group)})


def undeclared(checked: Iterable[Rule[Any]], arguments: Any) -> dict[str, set[str]]:
    """Rule → flags that decide about it on these arguments and are not among those that it names."""
    read: set[str] = set()
    parts = {one.name: getattr(arguments, one.name) for one in fields(arguments)}
    watched = {name: spied(part, read) if dataclasses.is_dataclass(part) else part for name, part in parts.items()}
    own = dataclasses.replace(arguments, **watched)
    found = {}
    for rule in checked:
        read.clear()
        rule.is_broken(own)
        if read - set(rule.flags):
            found[f"{rule.flags} {rule.message}"] = read - set(rule.flags)
    return found


def test_the_search_for_undeclared_flags_can_fail() -> None:
    arguments = parsed_arguments(small())
    wrong = Rule[PretrainArguments](("--lr",), lambda args: args.data_parallel_size > args.training.lr, "{--lr}")
    ((_, missing),) = undeclared([wrong], arguments).items()
    assert missing == {f"--{kind}-parallel-size" for kind in ("tensor-model", "pipeline-model", "context")}


def parsed_arguments(words: list[str]) -> PretrainArguments:
    parsed = parse_known_groups(
        words, pretrain_arguments.GROUPS, "program", "", pretrain_parser.unsupported_flag_reason
    )
    return PretrainArguments.from_groups(parsed.groups, 4, parsed.given)


@pytest.mark.parametrize("name", [*BROKEN, *ALLOWED])
def test_a_rule_of_training_names_every_flag_that_decides_about_it(name: str) -> None:
    changes = BROKEN[name][0] if name in BROKEN else ALLOWED[name]
    assert undeclared(pretrain_parser.RULES, parsed_arguments(small(**changes))) == {}


@pytest.mark.parametrize("line", PREPROCESS_LINES)
def test_a_rule_of_preprocessing_names_every_flag_that_decides_about_it(line: str) -> None:
    parsed = parse_known_groups(line.split(), preprocess_arguments.GROUPS, "program", "")
    assert undeclared(preprocess_arguments.RULES, PreprocessArguments(*parsed.groups)) == {}


def test_rules_name_flags_that_there_are() -> None:
    for groups, checked in (
        ((*pretrain_arguments.GROUPS, RawDataArguments), pretrain_parser.RULES),
        (preprocess_arguments.GROUPS, preprocess_arguments.RULES),
        ((inspect_arguments.InspectArguments, inspect_arguments.DecodingArguments), inspect_arguments.RULES),
    ):
        known = {flag.name for group in groups for flag in declared_flags(group)}
        for rule in checked:
            told = set(re.findall(r"{(--[\w-]+)", rule.message)) if isinstance(rule.message, str) else set()
            assert set(rule.flags) <= known and told <= set(rule.flags), rule


@dataclass
class Sizes:
    """Sizes."""

    layers: int = field(default=6, metadata={"minimum": 1})
    stages: int = field(default=4, metadata={"minimum": 1})
    rate: float = 0.5
    paths: list[str] = field(default_factory=lambda: ["a", "b"])
    fast: bool = True


DIVIDED = Rule[Sizes](
    ("--layers", "--stages"), lambda sizes: sizes.layers % sizes.stages, "{--layers} cannot be divided by {--stages}"
)


def test_messages_show_flags_with_their_values() -> None:
    other = Rule[Sizes](("--rate",), lambda sizes: True, "{--rate}, {--paths} and {--fast}")
    third = Rule[Sizes](("--rate",), lambda sizes: sizes.rate > 1, "no")
    derived = Rule[Sizes](("--layers",), lambda sizes: sizes, lambda sizes: f"twice {sizes.layers}: {2 * sizes.layers}")
    sizes = Sizes()
    assert violated_rules([DIVIDED, other, third, derived], sizes, [sizes]) == [
        "--layers 6 cannot be divided by --stages 4",
        "--rate 0.5, --paths a b and --fast",
        "twice 6: 12",
    ]


def test_a_rule_is_left_out_where_a_flag_that_it_involves_is_at_fault() -> None:
    sizes = Sizes()
    assert violated_rules([DIVIDED], sizes, [sizes], {"--stages"}) == []
    assert violated_rules([DIVIDED], sizes, [sizes], {"--stage", "--rate"}) != []
    parsed = parse_known_groups(["--stages", "0"], [Sizes], "program", "")
    assert parsed.problems == ["--stages 0: must be at least 1"]
    assert violated_rules([DIVIDED], parsed.groups[0], parsed.groups, parsed.invalid_flags) == []
