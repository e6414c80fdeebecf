"""Every number of every program has bounds on both sides, and the parser refuses what lies outside them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from preprocess_command import ALPACA
from tiny_runs import RUN

from mindspeed_llm.arguments.bounds import violated_bound
from mindspeed_llm.arguments.convert_arguments import ConvertArguments, parse_convert_arguments
from mindspeed_llm.arguments.dataclass_parser import Flag, declared_flags
from mindspeed_llm.arguments.inspect_arguments import DecodingArguments, InspectArguments, parse_inspect_arguments
from mindspeed_llm.arguments.preprocess_arguments import GROUPS as PREPROCESS_GROUPS
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_arguments import GROUPS as PRETRAIN_GROUPS
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError

ROOT = Path(__file__).parents[1]
ROWS = f"--input x --output-prefix y --tokenizer-name-or-path t --handler-name {ALPACA} --prompt-type qwen"
# Program → its groups, its parser and a command line without a fault.
PROGRAMS: dict[str, tuple[Sequence[type], Callable[[list[str]], Any], str]] = {
    "pretrain_gpt": (PRETRAIN_GROUPS, lambda words: parse_pretrain_arguments(words, 1), f"{RUN} --data-path packed"),
    "preprocess_data": (PREPROCESS_GROUPS, parse_preprocess_arguments, ROWS),
    "preprocess_data, merging": (PREPROCESS_GROUPS, parse_preprocess_arguments, f"{ROWS} --merge-group-keys labels"),
    "preprocess_data inspect": ((InspectArguments, DecodingArguments), parse_inspect_arguments, "packed"),
    "convert_ckpt": ((ConvertArguments,), parse_convert_arguments, "--load-dir a --save-dir b --ckpt-format torch"),
}
HUGE = {int: 10**30, float: 1e300}
# Where 0 has a meaning. All others refuse it, by their bounds.
ZERO_IS_VALID: dict[str, set[str]] = {
    "pretrain_gpt": {
        *("--lr", "--min-lr", "--lr-warmup-fraction", "--lr-warmup-iters", "--weight-decay", "--clip-grad"),
        *("--adam-beta1", "--adam-beta2", "--attention-dropout", "--hidden-dropout", "--init-method-std"),
        *("--eval-iters", "--skip-bad-steps", "--num-workers", "--verify-data-seconds"),
        *("--lr-warmup-samples", "--eod-id"),
        *("--loss-chunk-size", "--dry-run-trained-share", "--coc-mode", "--lora-dropout"),
    },
    "preprocess_data": {"--max-bad-rows", "--seed", "--virtual-tokens"},
    "preprocess_data, merging": {"--max-bad-rows", "--seed", "--virtual-tokens"},
    "preprocess_data inspect": {"--pack"},
    "convert_ckpt": set(),
}


def numbers_of(program: str) -> list[Flag]:
    return [flag for group in PROGRAMS[program][0] for flag in declared_flags(group) if flag.kind in (int, float)]


CASES = [(program, flag) for program in PROGRAMS for flag in numbers_of(program)]
NAMES = [f"{program} {flag.name}" for program, flag in CASES]


def problems_of(program: str, *words: str) -> list[str]:
    _, parse, line = PROGRAMS[program]
    try:
        parse([*line.split(), *words])
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_base_command_lines_are_valid(program: str) -> None:
    assert problems_of(program) == []


@pytest.mark.parametrize(("program", "flag"), CASES, ids=NAMES)
def test_a_number_has_bounds_that_the_parser_enforces(program: str, flag: Flag) -> None:
    """What lies outside is one line that names flag and bound; nothing else is reported about that flag."""
    metadata = flag.field.metadata
    assert len({"minimum", "above"} & metadata.keys()) == len({"maximum", "below"} & metadata.keys()) == 1
    outside = [-2, HUGE[flag.kind]] + [0] * (flag.name not in ZERO_IS_VALID[program])
    for value in map(flag.kind, outside):
        (problem,) = problems_of(program, flag.name, str(value))
        bound = violated_bound(metadata, value)
        assert bound is not None and problem == f"{flag.name} {value}: must be {bound}"
    for word in ("nan", "inf", "-inf"):
        (problem,) = problems_of(program, flag.name, word)
        assert problem in (f"{flag.name} {word}: not a whole number", f"{flag.name} {word}: not a finite number")


@pytest.mark.parametrize(("program", "flag"), CASES, ids=NAMES)
def test_values_at_the_bounds_and_valid_zeros_are_accepted(program: str, flag: Flag) -> None:
    """Rules between flags may refuse them, the parser does not."""
    metadata = flag.field.metadata
    inside = [metadata[key] for key in ("minimum", "maximum") if key in metadata]
    inside += [math.nextafter(metadata[key], 0.5) for key in ("above", "below") if key in metadata]
    for value in map(flag.kind, inside + [0] * (flag.name in ZERO_IS_VALID[program])):
        assert violated_bound(metadata, value) is None
        assert not any(": must be " in problem for problem in problems_of(program, flag.name, str(value)))


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_violated_bounds_are_reported_together_with_other_problems(program: str) -> None:
    flags = numbers_of(program)
    words = [word for flag in flags for word in (flag.name, "-2")]
    problems = problems_of(program, *words, "--no-such-flag")
    assert len(problems) == len(flags) + 1 and "--no-such-flag is not a flag" in problems[0]
    for flag, problem in zip(flags, problems[1:], strict=True):
        assert problem.startswith(f"{flag.name} -2") and ": must be " in problem


# Each as a process of its own would take minutes to start; a dry run patches megatron-core for its process.
DRY_RUNS = """
import contextlib, io, json, sys
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import UserError
from mindspeed_llm.dry_run import build_job_plan, print_plan

for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            print_plan(build_job_plan(parse_pretrain_arguments(words, 1)))
        except UserError:
            pass
        except Exception as error:
            raise SystemExit(f"{words[-2:]}: {error!r}")
print("done")
"""
# Layers are built one by one, and 10,000 of them take minutes.
SLOW = ("--num-layers", "--hidden-size")


@pytest.mark.long
def test_a_dry_run_with_a_number_at_its_bounds_is_planned_or_refused() -> None:
    commands = []
    for flag in numbers_of("pretrain_gpt"):
        metadata = flag.field.metadata
        inside = [metadata[key] for key in ("minimum", "maximum") if key in metadata and flag.name not in SLOW]
        length = "" if flag.name in ("--train-samples", "--train-epochs") else "--train-iters 6"
        line = f"{RUN.replace('--train-iters 6', length)} --dry-run"
        commands += [[*line.split(), flag.name, str(flag.kind(value))] for value in inside]
    command = [sys.executable, "-c", DRY_RUNS, json.dumps(commands)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert len(commands) > 60 and done.stdout == "done\n", done.stderr[-500:]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--target-pipeline-parallel-size", "-2"),
        ("--target-tensor-parallel-size", "0"),
        ("--make-vocab-size-divisible-by", "0"),
    ],
)
def test_a_conversion_with_an_invalid_size_ends_with_status_2(tmp_path: Path, flag: str, value: str) -> None:
    words = ["--load-dir", str(tmp_path), "--save-dir", str(tmp_path / "out"), "--ckpt-format", "torch", flag, value]
    command = [sys.executable, str(ROOT / "convert_ckpt.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert done.stderr == f"convert_ckpt.py: error: {flag} {value}: must be at least 1\n"
