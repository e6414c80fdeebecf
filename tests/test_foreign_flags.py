"""Names of other frameworks' flags: what is suggested exists, is accepted, and is what the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from argument_rule_cases import small

from mindspeed_llm.arguments.config_file import expand_config
from mindspeed_llm.arguments.convert_arguments import ConvertArguments, parse_convert_arguments
from mindspeed_llm.arguments.dataclass_parser import declared_flags
from mindspeed_llm.arguments.foreign_flags import CONVERSION, PREPROCESSING, TRAINING, Hints
from mindspeed_llm.arguments.preprocess_arguments import GROUPS as PREPROCESS_GROUPS
from mindspeed_llm.arguments.preprocess_arguments import parse_preprocess_arguments
from mindspeed_llm.arguments.pretrain_arguments import GROUPS
from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments, unsupported_flag_reason
from mindspeed_llm.arguments.raw_data_arguments import RawDataArguments
from mindspeed_llm.errors import ConfigError

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("coming-from-llama-factory.md", "coming-from-trl.md")
PREPROCESS = ["--input", "x", "--tokenizer-name-or-path", "t", "--output-prefix", "p"]


def names_of(*groups: type) -> set[str]:
    return {name for group in groups for flag in declared_flags(group) for name in flag.names}


FLAGS = {
    "pretrain": names_of(*GROUPS, RawDataArguments),
    "preprocess": names_of(*PREPROCESS_GROUPS),
    "convert": names_of(ConvertArguments),
}
HINTS: dict[str, Hints] = {"pretrain": TRAINING, "preprocess": PREPROCESSING, "convert": CONVERSION}
# Names in the tables that are no flags of a command line.
NOT_FLAGS = {"peft_config", "use_dora", "lora"}


def flags_of(text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z0-9-]*", text))


def problems_of(argv: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_pretrain_arguments(argv, 4)
    return caught.value.problems


@pytest.mark.parametrize("program", HINTS)
def test_hints_name_flags_of_their_program_and_no_flag_has_one(program: str) -> None:
    named = set().union(*(flags_of(hint) for hint in HINTS[program].values()))
    assert len(named) > 2 and named <= FLAGS[program], sorted(named - FLAGS[program])
    taken = {f"--{name.replace('_', '-')}" for name in HINTS[program]} & FLAGS[program]
    assert not taken, f"flags of the program, whose hints are never given: {sorted(taken)}"


def documented() -> list[tuple[set[str], set[str]]]:
    """Names of other frameworks and flags of this project, of each row of the two pages."""
    rows = []
    for page in PAGES:
        for line in (DOCS / page).read_text("utf-8").splitlines():
            if line.startswith("| `"):
                theirs, ours = line.strip().strip("|").rsplit("|", 1)
                rows.append((set(re.findall(r"`([a-z][a-z0-9_]+)(?=[`:=])", theirs)), flags_of(ours)))
    return rows


def test_the_tables_of_the_documentation_say_the_same() -> None:
    rows = documented()
    names = set().union(*(theirs for theirs, _ in rows))
    hinted = set().union(*HINTS.values())
    own = {flag[2:].replace("-", "_") for flags in FLAGS.values() for flag in flags}
    assert len(rows) > 40
    assert sorted(names - hinted - own - NOT_FLAGS) == [], "in a table, without a hint"
    assert sorted(set(TRAINING) - names) == [], "with a hint, in no table"
    wrong = {
        name: sorted(flags_of(hint))
        for name, hint in TRAINING.items()
        if not any(flags_of(hint) <= ours for theirs, ours in rows if name in theirs)
    }
    assert wrong == {}, "flags of a hint that no row of its name has"


@pytest.mark.parametrize(
    ("flag", "value", "hint"),
    [
        ("--learning_rate", "1e-5", "use --lr"),
        ("--learning-rate", "1e-5", "use --lr"),
        ("--per_device_train_batch_size", "2", "use --micro-batch-size, which counts packs"),
        ("--num_train_epochs", "3", "use --train-epochs"),
        ("--cutoff_len", "128", "use --seq-length"),
        ("--dataset", "rows.json", "use --data-path with the prefix of packed files"),
        ("--output_dir", "out", "use --save for checkpoints, and --save-hf for the trained model"),
    ],
)
def test_the_flag_that_was_meant_is_not_reported_as_missing(flag: str, value: str, hint: str) -> None:
    without = ("micro_batch_size", "lr", "train_iters", "seq_length", "data_path", "no_save_model")
    needed = {name: None for name in without if f"--{name.replace('_', '-')}" in flags_of(hint)}
    if "--train-epochs" in hint:
        needed["train_iters"] = None
    if "--save" in hint:
        needed["no_save_model"] = None
    (problem,) = problems_of([*small(**needed), flag, value])
    assert problem.startswith(f"{flag} is not a flag of this program; {hint}")


def test_every_foreign_flag_gets_its_hint_and_all_are_reported_at_once() -> None:
    words = [word for name in TRAINING for word in (f"--{name}", "1")]
    reported = problems_of([*small(), *words])
    assert reported == [f"--{name} is not a flag of this program; {hint}" for name, hint in TRAINING.items()]
    with pytest.raises(ConfigError) as caught:
        parse_preprocess_arguments([*PREPROCESS, "--model_name_or_path", "m", "--cutoff-len", "8"])
    assert [line.partition("; ")[2] for line in caught.value.problems] == [
        "use --tokenizer-name-or-path",
        "use --seq-length",
    ]
    with pytest.raises(ConfigError) as caught:
        parse_convert_arguments(["--model_name_or_path", "m", "--export_dir", "out"])
    assert [line.partition("; ")[2] for line in caught.value.problems] == ["use --load-dir", "use --save-dir"]


def test_a_file_gets_the_hints_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("learning_rate: 1e-5\nnum_train_epochs: 3\n")
    assert problems_of([*small(lr=None, train_iters=None), "--config", str(file)]) == [
        f"{file}:1: --learning-rate is not a flag of this program; use --lr",
        f"{file}:2: --num-train-epochs is not a flag of this program; use --train-epochs",
    ]
    flags = [flag for group in GROUPS for flag in declared_flags(group)]
    command = expand_config(["--config", str(file)], flags, unsupported_flag_reason)
    assert command.invalid_flags == {"--lr", "--train-epochs"}


def test_a_refused_feature_is_refused_in_both_spellings() -> None:
    assert problems_of([*small(), "--use_dora"]) == ["--use_dora: DoRA is not supported yet; leave the flag out"]


def test_a_switch_with_a_value_is_explained() -> None:
    assert problems_of([*small(), "--bf16", "true"]) == ["--bf16 takes no value; write --bf16 alone, or leave it out"]
    assert problems_of([*small(), "--neat_packing", "True", "--bf16", "stray"]) == [
        f"--neat_packing is not a flag of this program; {TRAINING['neat_packing']}",
        "'stray' belongs to no flag; remove it, or quote the value that it is part of",
    ]


def problems_of_training(words: list[str]) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse_pretrain_arguments(words, 1)
    return raised.value.problems


def test_the_shape_is_not_missing_if_the_model_is_named_in_another_way(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("model_name_or_path: m\nlearning_rate: 1.0\n")
    for words in (["--model_name_or_path", "m", "--learning_rate", "1"], ["--config", str(file)]):
        found = problems_of_training(words)
        assert not [line for line in found if "--num-layers is required" in line or "--lr is required" in line], found


def test_nothing_is_missing_if_the_file_of_config_cannot_be_read(tmp_path: Path) -> None:
    (found,) = problems_of_training(["--config", str(tmp_path / "none.yaml")])
    assert "cannot be read" in found
    (tmp_path / "bad.yaml").write_text("lr: [1\n")
    (found,) = problems_of_training(["--config", str(tmp_path / "bad.yaml")])
    assert "bad.yaml" in found


def test_flags_of_the_training_are_named_in_preprocessing() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_preprocess_arguments(["--reset-position-ids", "--micro_batch_size", "1"])
    for flag in ("--reset-position-ids", "--micro_batch_size"):
        line = f"{flag} is not a flag of this program; it belongs to the training (pretrain_gpt.py), leave it out here"
        assert line in raised.value.problems


def test_the_type_of_the_tokenizer_follows_from_its_flag() -> None:
    shape = "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 --vocab-size 8"
    run = "--micro-batch-size 1 --train-iters 1 --lr 1 --data-path d --no-save-model --stage pretrain"
    for flag, kind in (
        ("--tokenizer-name-or-path", "PretrainedFromHF"),
        ("--tokenizer-model", "GPTSentencePieceTokenizer"),
    ):
        arguments = parse_pretrain_arguments(f"{shape} {run} {flag} x".split(), 1)
        assert arguments.tokenizer.tokenizer_type == kind
