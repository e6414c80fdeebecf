"""--check-only: the messages of the run, from one process that imports neither torch nor numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from argument_rule_cases import small
from tiny_runs import RUN, write_files

from mindspeed_llm.arguments.pretrain_parser import parse_pretrain_arguments
from mindspeed_llm.errors import ConfigError

PROGRAM = Path(__file__).parent / "check_only_program.py"
HEAVY = {"torch", "megatron", "numpy", "transformers", "matplotlib", "tokenizers"}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of several commands, and the modules of their process."""
    folder = tmp_path_factory.mktemp("check")
    prefix = str(write_files(folder / "packed"))
    plain = str(write_files(folder / "plain", neat=False))
    unpacked = str(write_files(folder / "unpacked", packed=False))
    (folder / "empty").mkdir()
    valid = [*RUN.split(), "--data-path", prefix, "--check-only"]
    from_manifest = [word for word in valid if word not in ("--neat-pack", "--reset-position-ids")]
    commands = {
        "valid": valid,
        "from the manifest": from_manifest,
        "dry run": [*RUN.split(), "--dry-run", "--check-only"],
        "ranks": [*valid, "--tensor-model-parallel-size", "2"],
        "files": [
            *valid, "--load", f"{folder}/none", "--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path",
            "none", "--data-path", "none", "--bogus",
        ],
        "load alone": ["--load", f"{folder}/none", "--lr", "1e-5", "--check-only"],
        "empty load": [*valid, "--load", f"{folder}/empty"],
        "other data": [
            *valid, "--seq-length", "16", "--prompt-type", "llama3", "--tokenizer-type", "PretrainedFromHF",
            "--tokenizer-name-or-path", f"{folder}/empty", "--bogus",
        ],
        "other length": [*valid, "--seq-length", "64"],
        "other kinds": [*valid, "--data-path", plain, unpacked],
        "no neat packs": [*from_manifest, "--data-path", prefix, plain],
        "virtual tokens": [*valid, "--tuning", "prompt", "--virtual-tokens", "4"],
        "invalid length": [*valid, "--seq-length", "x", "--prompt-type", "llama3"],
    }  # fmt: skip
    words = json.dumps([["pretrain", argv] for argv in commands.values()])
    done = subprocess.run([sys.executable, PROGRAM], input=words, capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    return {"modules": set(seen["modules"]), "folder": folder, **dict(zip(commands, seen["results"], strict=True))}


def test_no_heavy_module_is_imported(checked: dict[str, Any]) -> None:
    assert "mindspeed_llm.arguments.pretrain_parser" in checked["modules"]
    assert not checked["modules"] & HEAVY


@pytest.mark.parametrize("name", ["valid", "from the manifest", "dry run"])
def test_a_valid_command_ends_with_status_0_and_one_line(checked: dict[str, Any], name: str) -> None:
    assert checked[name] == [0, "pretrain: the command is valid for 1 rank\n", ""]


def test_the_number_of_ranks_is_that_of_the_environment(checked: dict[str, Any]) -> None:
    status, _, errors = checked["ranks"]
    assert status == 2 and errors.startswith("pretrain: error: 1 rank")


def test_missing_files_are_reported_with_the_flags_and_load_comes_first(checked: dict[str, Any]) -> None:
    status, _, errors = checked["files"]
    lines = [line.removeprefix("pretrain: error: ") for line in errors.splitlines()]
    assert status == 2 and [line.partition(": ")[0] for line in lines] == [
        f"--load {checked['folder']}/none",
        "--bogus is not a flag of this program; --help lists them",
        "--tokenizer-name-or-path none",
        "none_packed_input_ids_document.idx",
    ]


def problems_of(checked: dict[str, Any], name: str) -> list[str]:
    """Messages of an invalid command, without its folder."""
    status, _, errors = checked[name]
    assert status == 2
    return [line.removeprefix("pretrain: error: ").replace(f"{checked['folder']}/", "") for line in errors.splitlines()]


def test_packs_that_were_made_for_other_flags_are_reported_with_the_other_faults(checked: dict[str, Any]) -> None:
    assert problems_of(checked, "other data") == [
        "--bogus is not a flag of this program; --help lists them",
        "--tokenizer-name-or-path empty: contains neither tokenizer.json nor tokenizer.model; specify the directory "
        "that contains one of them",
        "--seq-length 16: packed was packed to 32; use --seq-length 32, or preprocess again",
        "--prompt-type llama3: packed was made with qwen; use --prompt-type qwen, or preprocess again",
    ]
    assert problems_of(checked, "other length") == [
        "--seq-length 64: packed was packed to 32; use --seq-length 32, or preprocess again"
    ]
    assert problems_of(checked, "virtual tokens") == [
        "--virtual-tokens 4: packed has no reserved slots for virtual tokens; preprocess again with --virtual-tokens 4"
    ]


def test_kinds_of_packs_are_compared_with_the_flags_and_with_each_other(checked: dict[str, Any]) -> None:
    assert problems_of(checked, "other kinds") == [
        "--neat-pack: plain holds plain packs; preprocess with --pack --neat-pack, or remove --neat-pack and divide "
        "the packs at end tokens (--reset-position-ids)",
        "--neat-pack: unpacked holds unpacked samples; preprocess with --pack --neat-pack, or remove --neat-pack",
        "--data-path: plain holds plain packs, unpacked unpacked samples; preprocess both in the same way",
    ]
    assert problems_of(checked, "no neat packs") == [
        "packed holds neat packs: add --neat-pack, or samples of one pack would attend to each other",
        "--data-path: packed holds neat packs, plain plain packs; preprocess both in the same way",
    ]


def test_an_invalid_length_is_not_compared_with_that_of_the_packs(checked: dict[str, Any]) -> None:
    lines = problems_of(checked, "invalid length")
    assert [line.partition(":")[0] for line in lines] == ["--seq-length x", "--prompt-type llama3"]


def test_a_wrong_load_is_not_followed_by_the_shape_that_it_would_give(checked: dict[str, Any]) -> None:
    status, _, errors = checked["load alone"]
    assert status == 2 and errors.startswith(f"pretrain: error: --load {checked['folder']}/none: no such directory; ")
    assert "--num-layers" not in errors and "--hidden-size" not in errors and "--vocab-size" not in errors
    assert "--micro-batch-size is required" in errors, "other faults are reported as well"
    assert "holds no checkpoint (no latest_checkpointed_iteration.txt)" in checked["empty load"][2]


def test_a_load_that_is_gone_is_not_missed_when_the_run_resumes(tmp_path: Path) -> None:
    argv = small(load=str(tmp_path / "gone"), save=str(tmp_path / "run"), no_save_model=None)
    named = parse_pretrain_arguments(argv, 4, finds_files=True).wrong_files
    assert [line.partition(": ")[0] for line in named] == [
        f"--load {tmp_path}/gone",
        "packed/alpaca_packed_input_ids_document.idx",
    ]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("3")
    assert len(parse_pretrain_arguments(argv, 4, finds_files=True).wrong_files) == 1


def test_a_wrong_config_path_is_reported_with_the_other_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_pretrain_arguments(["--hf-config-path", str(tmp_path), "--lr", "x"], 1)
    first, *others = caught.value.problems
    assert first.startswith(f"{tmp_path}/config.json: no such file")
    assert "--lr x: not a number" in others and not any("--num-layers" in line for line in others)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_path": "{rows}", "handler_name": "AlpacaStyleInstructionHandler", "pack": ""}, None),
        (
            {"data_path": "none", "handler_name": "AlpacaStyleInstructionHandler", "pack": ""},
            "--data-path none: no such file or directory, and no packed files none_packed_*",
        ),
        ({"data_path": "{rows}"}, "{rows}: no packed files; it is raw data: add --handler-name, such as "),
        (
            {"data_path": "none", "is_instruction_dataset": None},
            "none: no document files none.bin and .idx; check the path (PREFIX_text_document), or run ",
        ),
        (
            {
                "data_path": "{packed}",
                "generate_prompts": "none",
                "tokenizer_type": "PretrainedFromHF",
                "tokenizer_name_or_path": "{folder}",
            },
            "--generate-prompts none: cannot be read (No such file or directory); check the path",
        ),
        ({"data_path": "{packed}", "prompt_type_path": "none", "prompt_type": "mine"}, None),
        (
            {"data_path": "{rows}", "handler_name": "AlpacaStyleInstructionHandler", "prompt_type_path": "none"},
            "--prompt-type-path none: cannot be read",
        ),
        (
            {"tokenizer_type": "GPTSentencePieceTokenizer", "tokenizer_model": "none", "data_path": "{packed}"},
            "--tokenizer-model none: no such file; check the path",
        ),
    ],
)
def test_missing_data_and_tokenizers(flags: dict[str, str | None], message: str | None, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text("[]")
    (tmp_path / "ready_packed_manifest.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    places = {"folder": tmp_path, "rows": rows, "packed": tmp_path / "ready"}
    words = small(**{name: value and value.format(**places) for name, value in flags.items()})
    if "handler_name" in flags:
        words += ["--tokenizer-type", "PretrainedFromHF", "--tokenizer-name-or-path", str(tmp_path), "--neat-pack"]
        words += ["--reset-position-ids", "--prompt-type", "qwen"]
    named = parse_pretrain_arguments(words, 4, finds_files=True).wrong_files
    assert (named == []) if message is None else len(named) == 1 and named[0].startswith(message.format(**places))


def test_under_torchrun_one_rank_prints_the_plan_of_a_dry_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindspeed_llm.programs.pretrain import main

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    shape = "--num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 --vocab-size 8"
    run = "--micro-batch-size 1 --train-iters 1 --lr 1 --data-path none --no-save-model --stage pretrain --dry-run"
    main(f"{shape} {run}".split())
    assert capsys.readouterr().out == ""
