"""Every program reports all faults that can be found without reading data, in one error, with numbers that work."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from argument_rule_cases import small

from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.arguments.rule import nearest_multiples
from mindspeed_llm.errors import ConfigError
from mindspeed_llm.programs.command import run_named
from mindspeed_llm.rawdata import find_input_files
from mindspeed_llm.rawdata.input_files import DataError

# Program → a command with several faults, and the beginnings of all lines.
FAULTS = {
    "preprocess": (
        "--input none other --tokenizer-name-or-path gone --output-prefix p --pack --neat-packs --workers many",
        [
            "--neat-packs is not a flag of this program; did you mean --neat-pack?",
            "--workers many: not a whole number",
            "--pack needs --seq-length",
            "--input none: no such file or directory",
            "--input other: no such file or directory",
            "--tokenizer-name-or-path gone: no such directory",
        ],
    ),
    "inspect": (
        "none --pack -1 --color blue --tokenizer-name-or-path gone",
        [
            "--pack -1: must be at least 0",
            "--color blue: not one of auto, always, never",
            "none_packed_input_ids_document.idx: no such file",
            "--tokenizer-name-or-path gone: no such directory",
        ],
    ),
    "convert": (
        "--load-dir none --save-dir out --load-model-type hf --save-model-type hf --hf-dir gone --params-dtype fp64",
        [
            "--params-dtype fp64: not one of bf16, fp16, fp32",
            "--load-model-type and --save-model-type are both hf",
            "--load-dir none: no such directory",
            "--hf-dir gone: no such directory",
        ],
    ),
    "report": (
        "none other --html --out page.html",
        [
            "none: no such file",
            "other: no such file",
            "--html and --svg write a file for each run",
        ],
    ),
    "verify": (
        "--load none --export gone --data-path lost --lr fast --packs 0",
        [
            "--packs 0: must be at least 1",
            "--export gone: neither a Hugging Face folder nor a peft folder",
            "--load none: no such directory",
            "--lr fast: not a number",
            "--seq-length is required",
            "lost_packed_input_ids_document.idx: no such file",
        ],
    ),
}


@pytest.mark.parametrize("program", FAULTS)
def test_each_program_reports_all_faults(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = FAULTS[program]
    status = run_named(program, words.split(), "prog")
    out, errors = capsys.readouterr()
    lines = [line.removeprefix("prog: error: ") for line in errors.splitlines()]
    assert (status, out) == (2, "")
    assert len(lines) == len(expected), lines
    assert all(line.startswith(beginning) for line, beginning in zip(lines, expected, strict=True)), lines
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_all_inputs_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError) as caught:
        find_input_files([str(tmp_path / "none"), str(tmp_path / "empty"), f"{tmp_path}/*.json"])
    assert [line.partition(": ")[2][:12] for line in str(caught.value).splitlines()] == [
        "no such file",
        "the director",
        "no file matc",
    ]


@pytest.mark.parametrize(
    ("value", "unit", "minimum", "text"),
    [(12, 16, 1, "16"), (20, 16, 1, "16 or 32"), (1, 2, 1, "2"), (511, 2, 512, "512"), (100, 8, 1, "96 or 104")],
)
def test_nearest_multiples(value: int, unit: int, minimum: int, text: str) -> None:
    assert nearest_multiples(value, unit, minimum) == text


Parse = Callable[[Sequence[str]], object]
TRAIN: Parse = lambda argv: parse_pretrain_arguments(argv, 4)  # noqa: E731 - a value of the table below
PREPROCESS = "--input x --tokenizer-name-or-path t --output-prefix p --pack --neat-pack".split()  # noqa: SIM905

# The flag that the message is about, a faulty command, and the numbers that the message names.
NUMBERS: dict[str, tuple[Parse, list[str], str, list[str]]] = {
    "batch": (TRAIN, small(), "--global-batch-size 12", ["8", "16"]),
    "small batch": (TRAIN, small(), "--global-batch-size 4", ["8"]),
    "vocabulary": (TRAIN, small(tensor_model_parallel_size="2"), "--padded-vocab-size 511", ["510", "512"]),
    "length": (
        TRAIN,
        small(tensor_model_parallel_size="4", group_query_attention=None, num_query_groups=None, sequence_parallel="",
              micro_batch_size="1"),
        "--seq-length 126",
        ["124", "128"],
    ),
    "rounds": (
        TRAIN,
        small(pipeline_model_parallel_size="2", num_layers_per_virtual_pipeline_stage="1"),
        "--global-batch-size 12",
        ["8", "16"],
    ),
    "folders": (TRAIN, small(save="out", no_save_model=None, save_interval="4"), "--save-hf-interval 6", ["4", "8"]),
    "padding": (
        parse_preprocess_arguments, [*PREPROCESS, "--pad-to-multiple-of", "8"], "--seq-length 100", ["96", "104"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_the_numbers_that_a_message_names_work(name: str) -> None:
    parse, argv, faulty, numbers = NUMBERS[name]
    flag, value = faulty.split()
    with pytest.raises(ConfigError) as caught:
        parse([*argv, flag, value])
    (message,) = caught.value.problems
    assert f"give {' or '.join(numbers)}" in message or f"give {flag} {' or '.join(numbers)}" in message
    for number in numbers:
        parse([*argv, flag, number])


@pytest.mark.parametrize(
    ("ranks", "flags", "text"),
    [
        (1, {"tensor_model_parallel_size": "2"}, "1 rank cannot be divided by --tensor-model-parallel-size 2 × "),
        (6, {"tensor_model_parallel_size": "4", "group_query_attention": None, "num_query_groups": None}, "6 ranks"),
    ],
)
def test_the_number_of_ranks_that_is_named_works(ranks: int, flags: dict[str, str | None], text: str) -> None:
    argv = small(**flags, global_batch_size=None)
    with pytest.raises(ConfigError) as caught:
        parse_pretrain_arguments(argv, ranks)
    (message,) = caught.value.problems
    assert message.startswith(text)
    number = int(re.search(r"torchrun --nproc_per_node (\d+)\)", message)[1])
    assert parse_pretrain_arguments(argv, number).world_size == number
    with pytest.raises(ConfigError, match=f"; set WORLD_SIZE to {number}"):
        parse_pretrain_arguments([*argv, "--dry-run"], ranks)
